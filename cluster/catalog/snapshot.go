package catalog

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/hashicorp/go-memdb"
)

// A snapshot is
//
//	"shoalcat" version(1) index(8) { table(1) length(4) JSON } 0 crc32c(4)
//
// where the sum covers everything before it. Tables keep their numbers for ever.
const (
	snapshotMagic   = "shoalcat"
	snapshotVersion = 1
	maxRecord       = 16 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errCorrupt is what every unreadable snapshot is.
var errCorrupt = errors.New("snapshot is damaged")

// stored is one table as snapshots know it.
type stored struct {
	number byte
	name   string
	decode func([]byte) (any, error)
}

func storedTable[T any](number byte, name string) stored {
	return stored{number, name, func(b []byte) (any, error) {
		r := new(T)
		return r, json.Unmarshal(b, r)
	}}
}

func storedTables() []stored {
	return []stored{
		storedTable[settings](1, tableSettings),
		storedTable[Node](2, tableNode),
		storedTable[Container](3, tableContainer),
		storedTable[portClaim](4, tablePort),
		storedTable[Image](5, tableImage),
		storedTable[Ref](6, tableRef),
		storedTable[nodeSeq](7, tableSeq),
		storedTable[gone](8, tableGone),
		storedTable[Private](9, tablePrivate),
		storedTable[Volume](10, tableVolume),
	}
}

// writeSnapshot writes one moment of the state.
func writeSnapshot(w io.Writer, v *view) error {
	sum := crc32.New(castagnoli)
	buf := bufio.NewWriterSize(w, 64<<10)
	out := io.MultiWriter(buf, sum)
	head := append([]byte(snapshotMagic), snapshotVersion)
	if _, err := out.Write(binary.BigEndian.AppendUint64(head, v.index)); err != nil {
		return err
	}
	t := v.db.Txn(false)
	for _, table := range storedTables() {
		it, err := t.Get(table.name, "id_prefix", "")
		if err != nil {
			return fmt.Errorf("read table %s: %w", table.name, err)
		}
		for o := it.Next(); o != nil; o = it.Next() {
			if err := writeRecord(out, table.number, o); err != nil {
				return fmt.Errorf("write table %s: %w", table.name, err)
			}
		}
	}
	if _, err := out.Write([]byte{0}); err != nil {
		return err
	}
	if _, err := buf.Write(binary.BigEndian.AppendUint32(nil, sum.Sum32())); err != nil {
		return err
	}
	return buf.Flush()
}

func writeRecord(w io.Writer, table byte, o any) error {
	body, err := json.Marshal(o)
	if err != nil {
		return err
	}
	head := binary.BigEndian.AppendUint32([]byte{table}, uint32(len(body)))
	if _, err := w.Write(head); err != nil {
		return err
	}
	_, err = w.Write(body)
	return err
}

// readSnapshot reads a whole snapshot before any of it counts.
func readSnapshot(r io.Reader) (*memdb.MemDB, uint64, error) {
	sum := crc32.New(castagnoli)
	raw := bufio.NewReaderSize(r, 64<<10)
	in := io.TeeReader(raw, sum)
	head := make([]byte, len(snapshotMagic)+9)
	if _, err := io.ReadFull(in, head); err != nil || string(head[:len(snapshotMagic)]) != snapshotMagic {
		return nil, 0, fmt.Errorf("%w: it doesn't begin as one", errCorrupt)
	}
	if v := head[len(snapshotMagic)]; v != snapshotVersion {
		return nil, 0, fmt.Errorf("snapshot has format %d, this version reads %d: upgrade shoal on this node", v, snapshotVersion)
	}
	index := binary.BigEndian.Uint64(head[len(snapshotMagic)+1:])
	db := newDB()
	t := db.Txn(true)
	defer t.Abort()
	if err := readRecords(in, t); err != nil {
		return nil, 0, err
	}
	want := sum.Sum32()
	var tail [4]byte
	if _, err := io.ReadFull(raw, tail[:]); err != nil || binary.BigEndian.Uint32(tail[:]) != want {
		return nil, 0, fmt.Errorf("%w: its checksum doesn't match", errCorrupt)
	}
	t.Commit()
	return db, index, nil
}

func readRecords(in io.Reader, t *memdb.Txn) error {
	tables := map[byte]stored{}
	for _, s := range storedTables() {
		tables[s.number] = s
	}
	for n := 0; ; n++ {
		var head [5]byte
		if _, err := io.ReadFull(in, head[:1]); err != nil {
			return fmt.Errorf("%w: it ends after %d records", errCorrupt, n)
		}
		if head[0] == 0 {
			return nil
		}
		table, ok := tables[head[0]]
		if !ok {
			return fmt.Errorf("snapshot has a table %d that this version doesn't know: upgrade shoal on this node", head[0])
		}
		if _, err := io.ReadFull(in, head[1:]); err != nil {
			return fmt.Errorf("%w: record %d is cut off", errCorrupt, n)
		}
		size := binary.BigEndian.Uint32(head[1:])
		if size > maxRecord {
			return fmt.Errorf("%w: record %d has %d bytes", errCorrupt, n, size)
		}
		body, err := io.ReadAll(io.LimitReader(in, int64(size)))
		if err != nil || len(body) != int(size) {
			return fmt.Errorf("%w: record %d is cut off", errCorrupt, n)
		}
		o, err := table.decode(body)
		if err == nil {
			err = t.Insert(table.name, o)
		}
		if err != nil {
			return fmt.Errorf("%w: record %d: %w", errCorrupt, n, err)
		}
	}
}
