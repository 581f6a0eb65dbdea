package catalog

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/hashicorp/go-memdb"
)

// Tables of the state. Records in them are pointers to values that are never
// changed after they were inserted.
const (
	tableNode      = "node"
	tableContainer = "container"
	tablePort      = "port"
	tableImage     = "image"
	tableRef       = "ref"
	tableSeq       = "seq"
	tableGone      = "gone"
	tableSettings  = "settings"
	tablePrivate   = "private"
	tableVolume    = "volume"
)

// portClaim is the right of one container to one port.
type portClaim struct {
	Port        Port
	ContainerID string
	NodeID      string
}

// nodeSeq is the last report taken from a node.
type nodeSeq struct {
	NodeID                      string
	Containers, Images, Volumes uint64
}

// gone is the tombstone of a removed container; Order grows with each.
type gone struct {
	ID    string
	Order uint64
}

// settings is the one row of its table.
type settings struct {
	SetSettings
	Gone   uint64   // the last tombstone's order
	Voters []string // IDs of the nodes whose copy votes, sorted
}

// key is an index of records by one string computed from them.
type key[T any] func(*T) string

func (k key[T]) FromObject(o any) (bool, []byte, error) {
	r, ok := o.(*T)
	if !ok {
		return false, nil, fmt.Errorf("a %T in a table of %T", o, r)
	}
	s := k(r)
	return s != "", []byte(s + "\x00"), nil
}

func (k key[T]) FromArgs(args ...any) ([]byte, error) {
	b, err := k.PrefixFromArgs(args...)
	return append(b, 0), err
}

func (k key[T]) PrefixFromArgs(args ...any) ([]byte, error) {
	if len(args) != 1 {
		return nil, fmt.Errorf("an index takes one argument, got %d", len(args))
	}
	s, ok := args[0].(string)
	if !ok {
		return nil, fmt.Errorf("an index takes a string, got %T", args[0])
	}
	return []byte(s), nil
}

func table[T any](name string, id key[T], others map[string]key[T]) *memdb.TableSchema {
	t := &memdb.TableSchema{Name: name, Indexes: map[string]*memdb.IndexSchema{
		"id": {Name: "id", Unique: true, Indexer: id},
	}}
	for n, k := range others {
		t.Indexes[n] = &memdb.IndexSchema{Name: n, AllowMissing: true, Indexer: k}
	}
	return t
}

func schema() *memdb.DBSchema {
	s := &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{}}
	for _, t := range []*memdb.TableSchema{
		table(tableNode, func(n *Node) string { return n.ID },
			map[string]key[Node]{"name": func(n *Node) string { return n.Name }}),
		table(tableContainer, func(c *Container) string { return c.ID }, map[string]key[Container]{
			"name":   func(c *Container) string { return c.Name },
			"node":   func(c *Container) string { return c.NodeID },
			"newest": newestFirst,
		}),
		table(tablePort, portKey, map[string]key[portClaim]{
			"container": func(p *portClaim) string { return p.ContainerID },
		}),
		table(tableImage, func(i *Image) string { return imageKey(i.NodeID, i.Digest) }, map[string]key[Image]{
			"digest": func(i *Image) string { return i.Digest },
			"node":   func(i *Image) string { return i.NodeID },
		}),
		table(tableRef, func(r *Ref) string { return r.Name }, nil),
		table(tableVolume, func(v *Volume) string { return v.Name + "\x00" + v.NodeID }, map[string]key[Volume]{
			"name": func(v *Volume) string { return v.Name },
			"node": func(v *Volume) string { return v.NodeID },
		}),
		table(tablePrivate, func(p *Private) string { return p.Digest }, nil),
		table(tableSeq, func(s *nodeSeq) string { return s.NodeID }, nil),
		table(tableGone, func(g *gone) string { return g.ID },
			map[string]key[gone]{"order": func(g *gone) string { return orderKey(g.Order) }}),
		table(tableSettings, func(*settings) string { return tableSettings }, nil),
	} {
		s.Tables[t.Name] = t
	}
	return s
}

// newestFirst sorts by creation time backwards, then by ID.
func newestFirst(c *Container) string {
	return orderKey(^uint64(c.Created.UnixNano())) + c.ID
}

func orderKey(n uint64) string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n)
	return string(b[:])
}

func imageKey(node, digest string) string { return node + "\x00" + digest }

// portKey starts with portPrefix, so that everyone on a port is found in one walk.
func portKey(p *portClaim) string {
	ip := "*"
	if p.Port.HostIP.IsValid() {
		ip = p.Port.HostIP.String()
	}
	return portPrefix(p.Port.Proto, p.Port.HostPort) + ip + "/" + p.ContainerID
}

func portPrefix(proto string, port uint16) string {
	return fmt.Sprintf("%s/%05d/", cmp.Or(proto, "tcp"), port)
}

// everywhere says whether a port is published on every node.
func everywhere(ip netip.Addr) bool { return !ip.IsValid() || ip.IsUnspecified() }
