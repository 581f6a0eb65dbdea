// Package erofs writes EROFS images as a stream: file contents as they come, the tree
// that was built meanwhile at the end.
//
// An image is written in this order, in blocks of 4 KiB:
//
//	block 0         left empty; the superblock comes last, so an image that was cut off is none
//	file contents   of each file from a block's start; blocks of zeros are holes
//	inodes          the root first, then each directory's entries, sorted, before those of the next
//	directories     those blocks that are not kept beside their inode
//
// With Options.Tar, blocks are of 512 bytes, and files may be such whose contents lie in
// a tar that the kernel is given as another device when it mounts the image: the tree is
// all that is written. Their inodes have one chunk, which is all of the file.
//
// Nothing is compressed. What an entry needs of memory until Finish is about 200
// bytes and the length of its name, link target and attributes.
package erofs
