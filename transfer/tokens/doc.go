// Package tokens takes the entropy code off gzip's streams and puts it on again, bit for bit.
//
// What a compressor finds in content, literal bytes and copies of earlier ones, depends
// on the content nearby; the bits in which it writes that down depend on all before. So
// a blob is taken apart into two:
//
//   - its tokens, literals and copies, as bytes in which a change stays where it is;
//   - its layout: everything else. It is short.
//
// Both together make the same blob again, whatever compressed it, in a fraction of the
// time that compressing takes.
//
// # Tokens
//
// A literal is its byte; the byte f5 is written f5 ff. A copy is f5, its distance less 1
// (2 bytes, big endian, at most 7fff) and its length less 3 (1 byte). The bytes of stored
// blocks are literals.
//
// # Layout
//
// A sequence of records, in the order of the blob. Numbers are unsigned varints, as in
// protocol buffers. A record begins with a number: its kind in the low two bits and, of
// a block, whether it is the last of its stream in the third one.
//
//   - 3, raw: length, bytes. What is outside of deflate: headers and ends of gzip members.
//     It begins at a byte; the bits before are zero.
//   - 0, stored block: how many bytes. The bits between its head and its length are zero.
//   - 1, block of the fixed code: how many tokens, its end not counted.
//   - 2, block of a code of its own: how many tokens; how many bits of header follow, the
//     block's first three not counted; these bits, the first one the lowest of the first
//     byte, and zeros up to a whole byte.
package tokens
