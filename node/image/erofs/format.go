package erofs

import (
	"encoding/binary"
	"hash/crc32"
	"strings"

	"golang.org/x/sys/unix"
)

// The numbers of the format, as the kernel's erofs_fs.h has them.
const (
	pageBits = 12
	pageSize = 1 << pageBits
	// tarBits is the block size of an image whose contents lie in a tar, which has
	// them at multiples of it.
	tarBits = 9

	superOffset = 1024
	superSize   = 128
	superMagic  = 0xE0F5E1E2
	deviceSize  = 128 // of what the table of devices has of each

	compatChecksum  = 1 // the superblock has a checksum
	compatMtime     = 2 // times are those of modification
	incompatChunks  = 4 // there are files in chunks
	incompatDevices = 8 // and other files where chunks may lie

	layoutPlain  = 0 // all of it in blocks of its own
	layoutInline = 2 // the end of it right after the inode
	layoutChunks = 4 // in chunks, a list of which is after the inode

	chunkIndexes = 0x20 // the list says in which file a chunk lies
	chunkIndex   = 8    // bytes; at a multiple of it
	maxChunkBits = 31   // a chunk has at most so many blocks, as a power of two

	compactInode  = 32 // bytes
	extendedInode = 64
	slot          = 32 // what inode numbers count
	direntSize    = 12
	xattrHeader   = 12
)

var le = binary.LittleEndian

// fileType is how a directory's entry says what it names.
func fileType(mode uint16) byte {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return 1
	case unix.S_IFDIR:
		return 2
	case unix.S_IFCHR:
		return 3
	case unix.S_IFBLK:
		return 4
	case unix.S_IFIFO:
		return 5
	case unix.S_IFSOCK:
		return 6
	default:
		return 7
	}
}

// device is a device's number as the format has it: twelve bits of major, twenty of
// minor.
func device(major, minor uint32) uint32 {
	return minor&0xff | major&0xfff<<8 | minor&0xfff00<<12
}

// xattrPrefixes are kept as a number.
var xattrPrefixes = []struct {
	index  byte
	prefix string
}{
	{1, "user."}, {2, "system.posix_acl_access"}, {3, "system.posix_acl_default"}, {4, "trusted."}, {6, "security."},
}

// xattrName splits an attribute's name; ok is false for one that EROFS can't keep.
func xattrName(name string) (index byte, rest string, ok bool) {
	for _, p := range xattrPrefixes {
		rest, found := strings.CutPrefix(name, p.prefix)
		acl := strings.HasPrefix(p.prefix, "system.")
		if found && acl == (rest == "") && len(rest) <= 255 {
			return p.index, rest, true
		}
	}
	return 0, "", false
}

// encodeXattrs is what follows an inode; empty if there are none. All are ones that
// xattrName takes.
func encodeXattrs(xs []Xattr) string {
	if len(xs) == 0 {
		return ""
	}
	b := make([]byte, xattrHeader)
	for _, x := range xs {
		index, rest, _ := xattrName(x.Name)
		b = append(b, byte(len(rest)), index)
		b = le.AppendUint16(b, uint16(len(x.Value)))
		b = append(b, rest...)
		b = append(b, x.Value...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	return string(b)
}

// super is what the superblock says.
type super struct {
	root      uint16
	inodes    uint64
	sec       int64
	nsec      uint32
	blocks    uint32
	metaBlock uint32
	blockBits uint8
	tarBlocks uint32 // of the tar that has contents; 0 if there is none
	uuid      [16]byte
}

// encode is what an image begins with, headSize bytes.
func (s super) encode() []byte {
	head := make([]byte, headSize)
	b := head[superOffset:]
	le.PutUint32(b[0:], superMagic)
	le.PutUint32(b[8:], compatChecksum|compatMtime)
	b[12] = s.blockBits
	le.PutUint16(b[14:], s.root)
	le.PutUint64(b[16:], s.inodes)
	le.PutUint64(b[24:], uint64(s.sec))
	le.PutUint32(b[32:], s.nsec)
	le.PutUint32(b[36:], s.blocks)
	le.PutUint32(b[40:], s.metaBlock)
	copy(b[48:], s.uuid[:])
	if s.tarBlocks > 0 {
		le.PutUint32(b[80:], incompatChunks|incompatDevices)
		le.PutUint16(b[86:], 1)
		le.PutUint16(b[88:], (superOffset+superSize)/deviceSize)
		le.PutUint32(b[superSize+64:], s.tarBlocks)
	}
	// The kernel's checksum lacks the last inversion, and covers the rest of the block
	// that the superblock begins in.
	rest := b[:(1<<s.blockBits)-superOffset%(1<<s.blockBits)]
	le.PutUint32(b[4:], ^crc32.Checksum(rest, crc32.MakeTable(crc32.Castagnoli)))
	return head
}

// headSize is how much is left empty for the superblock, in bytes.
const headSize = pageSize
