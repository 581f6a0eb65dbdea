package early

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// What is needed of the kernel's protocol, with the names of its linux/fuse.h.
const (
	fuseMajor = 7
	fuseMinor = 31

	opForget      = 2
	opGetattr     = 3
	opOpen        = 14
	opRead        = 15
	opRelease     = 18
	opFlush       = 25
	opInit        = 26
	opInterrupt   = 36
	opDestroy     = 38
	opBatchForget = 42

	flagAsyncRead = 1 << 0
	flagMaxPages  = 1 << 22
	openKeepCache = 1 << 1

	headerIn  = 40
	headerOut = 16
	// maxRead is the most bytes of one read, maxRequest that of any request: the kernel
	// refuses to give requests to who reads less.
	maxReadPages = 256
	maxRead      = maxReadPages << 12
	maxRequest   = 64 << 10
	// forever is for how many seconds the kernel may remember attributes.
	forever = 1 << 30
)

var native = binary.NativeEndian

// request is what the kernel asks.
type request struct {
	op     uint32
	unique uint64
	// Of reads.
	offset int64
	size   int
	// Of interrupts: the request that nobody waits for any more.
	target uint64
	// Of inits.
	major, minor, readahead, flags uint32
}

var errRequest = errors.New("the kernel's request is malformed")

func decodeRequest(b []byte) (request, error) {
	if len(b) < headerIn || uint64(native.Uint32(b)) != uint64(len(b)) {
		return request{}, errRequest
	}
	r := request{op: native.Uint32(b[4:]), unique: native.Uint64(b[8:])}
	body := b[headerIn:]
	switch r.op {
	case opInit:
		if len(body) < 16 {
			return r, errRequest
		}
		r.major, r.minor = native.Uint32(body), native.Uint32(body[4:])
		r.readahead, r.flags = native.Uint32(body[8:]), native.Uint32(body[12:])
	case opRead:
		if len(body) < 20 {
			return r, errRequest
		}
		offset, size := native.Uint64(body[8:]), native.Uint32(body[16:])
		if offset > 1<<62 || size > maxRead {
			return r, errRequest
		}
		r.offset, r.size = int64(offset), int(size)
	case opInterrupt:
		if len(body) < 8 {
			return r, errRequest
		}
		r.target = native.Uint64(body)
	}
	return r, nil
}

// reply is the header of an answer of n bytes, or of an error.
func reply(unique uint64, errno unix.Errno, n int) []byte {
	b := make([]byte, headerOut, headerOut+n)
	native.PutUint32(b, uint32(headerOut+n))
	native.PutUint32(b[4:], uint32(-int32(errno)))
	native.PutUint64(b[8:], unique)
	return b
}

func failed(unique uint64, errno unix.Errno) []byte { return reply(unique, errno, 0) }

// initialized answers an init.
func initialized(r request) []byte {
	const n = 64
	b := reply(r.unique, 0, n)
	b = native.AppendUint32(b, fuseMajor)
	b = native.AppendUint32(b, fuseMinor)
	b = native.AppendUint32(b, r.readahead)
	b = native.AppendUint32(b, r.flags&(flagAsyncRead|flagMaxPages))
	b = native.AppendUint16(b, 64) // reads in the background at a time
	b = native.AppendUint16(b, 48)
	b = native.AppendUint32(b, 4096) // the longest write; there are none
	b = native.AppendUint32(b, 1)    // precision of times
	b = native.AppendUint16(b, maxReadPages)
	return append(b, make([]byte, headerOut+n-len(b))...)
}

// attributes answers what the file is like.
func attributes(unique uint64, size int64) []byte {
	const n = 104
	b := reply(unique, 0, n)
	b = native.AppendUint64(b, forever)
	b = native.AppendUint64(b, 0)
	b = native.AppendUint64(b, 1) // inode
	b = native.AppendUint64(b, uint64(size))
	b = native.AppendUint64(b, uint64(size+511)/512)
	b = append(b, make([]byte, 3*8+3*4)...) // times
	b = native.AppendUint32(b, unix.S_IFREG|0o400)
	b = native.AppendUint32(b, 1) // links
	b = append(b, make([]byte, 3*4)...)
	b = native.AppendUint32(b, 4096)
	return native.AppendUint32(b, 0)
}

// opened answers an open: what was read once stays good.
func opened(unique uint64) []byte {
	b := reply(unique, 0, 16)
	b = native.AppendUint64(b, 0)
	b = native.AppendUint32(b, openKeepCache)
	return native.AppendUint32(b, 0)
}
