package catalog

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-memdb"

	"github.com/shoal-engine/shoal/api"
)

// tx is what an applier works on: the state, and the proposer's time and seed in
// place of a clock and chance, which would differ between replicas.
type tx struct {
	*memdb.Txn
	at   time.Time
	seed uint64
}

// applier changes the state by one command. It checks everything before its first
// write, so that an error leaves nothing behind.
type applier func(tx, []byte) (Result, error)

// appliers is the table of all kinds this version knows.
var appliers = map[Kind]applier{
	KindSetSettings:     decoded(setSettings),
	KindSetSecret:       decoded(setSecret),
	KindPutNode:         decoded(putNode),
	KindRemoveNode:      decoded(removeNode),
	KindNodeTags:        decoded(nodeTags),
	KindSetNodeDown:     decoded(setNodeDown),
	KindClaimContainer:  decoded(claimContainer),
	KindClaimPorts:      decoded(claimPorts),
	KindReleaseClaim:    decoded(releaseClaim),
	KindPutContainers:   decoded(putContainers),
	KindRemoveContainer: decoded(removeContainer),
	KindRenameContainer: decoded(renameContainer),
	KindContainerTags:   decoded(containerTags),
	KindPutImages:       decoded(putImages),
	KindSetRef:          decoded(setRef),
	KindDropRef:         decoded(dropRef),
	KindSetPrivate:      decoded(setPrivate),
	KindDropPrivate:     decoded(dropPrivate),
	KindClaimVolume:     decoded(claimVolume),
	KindReleaseVolume:   decoded(releaseVolume),
	KindPutVolumes:      decoded(putVolumes),
}

// corruptError is a command that no replica of this version can read, or a table
// that contradicts itself: the replica stops.
type corruptError struct{ error }

func (e *corruptError) Unwrap() error { return e.error }

func decoded[C Command](f func(tx, C) (Result, error)) applier {
	return func(t tx, body []byte) (Result, error) {
		var c C
		if err := json.Unmarshal(body, &c); err != nil {
			return Result{}, &corruptError{fmt.Errorf("decode command: %w", err)}
		}
		return f(t, c)
	}
}

// put inserts a record.
func put[T any](t tx, table string, r *T) error {
	if err := t.Insert(table, r); err != nil {
		return &corruptError{fmt.Errorf("insert into %s: %w", table, err)}
	}
	return nil
}

// drop deletes a record that may be absent.
func drop[T any](t tx, table string, r *T) error {
	if err := t.Delete(table, r); err != nil && !errors.Is(err, memdb.ErrNotFound) {
		return &corruptError{fmt.Errorf("delete from %s: %w", table, err)}
	}
	return nil
}

func setSettings(t tx, c SetSettings) (Result, error) {
	if !c.Subnet.IsValid() || !c.Subnet.Addr().Is4() || c.Subnet.Bits() > sliceBits {
		return Result{}, api.InvalidArgument("subnet %s: want an IPv4 prefix of at most /%d", c.Subnet, sliceBits)
	}
	s := rowSettings(t)
	if s.Subnet.IsValid() {
		return Result{}, nil
	}
	c.Subnet = c.Subnet.Masked()
	s.SetSettings = c
	return Result{}, put(t, tableSettings, &s)
}

func setSecret(t tx, c SetSecret) (Result, error) {
	s := rowSettings(t)
	s.Secret = c.Secret
	return Result{}, put(t, tableSettings, &s)
}

func rowSettings(t tx) settings {
	if s, ok := first[settings](t.Txn, tableSettings, "id", tableSettings); ok {
		return *s
	}
	return settings{}
}

// sliceBits is the length of the prefix that a node is leased: 253 containers.
const sliceBits = 24

// DefaultSubnet is the cluster's network where init names none.
var DefaultSubnet = netip.MustParsePrefix("10.77.0.0/16")

func putNode(t tx, c PutNode) (Result, error) {
	n := c.Node
	if n.ID == "" || n.Name == "" {
		return Result{}, api.InvalidArgument("a node needs an ID and a name")
	}
	if other, ok := first[Node](t.Txn, tableNode, "name", n.Name); ok && other.ID != n.ID {
		return Result{}, api.Conflict("node name %q is already in use by node %s", n.Name, other.ID)
	}
	old, known := first[Node](t.Txn, tableNode, "id", n.ID)
	if known {
		tags := maps.Clone(n.Tags)
		if tags == nil {
			tags = map[string]string{}
		}
		maps.Copy(tags, old.Tags)
		n.Tags, n.Subnet, n.Joined = tags, old.Subnet, old.Joined
	} else {
		subnet, err := freeSlice(t)
		if err != nil {
			return Result{}, err
		}
		n.Subnet, n.Joined = subnet, t.at
	}
	n.Down, n.Voter = false, slices.Contains(rowSettings(t).Voters, n.ID)
	shown := n
	return Result{Node: &shown}, put(t, tableNode, &n)
}

// freeSlice is the lowest slice of the cluster's subnet that no node has.
func freeSlice(t tx) (netip.Prefix, error) {
	subnet := DefaultSubnet
	if s := rowSettings(t); s.Subnet.IsValid() {
		subnet = s.Subnet
	}
	taken := map[netip.Prefix]bool{}
	for _, n := range pointers[Node](t.Txn, tableNode, "id_prefix", "") {
		taken[n.Subnet] = true
	}
	a := subnet.Addr().As4()
	base := uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8
	for i := range uint32(1) << (sliceBits - subnet.Bits()) {
		v := base + i<<(32-sliceBits)
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8)}), sliceBits)
		if !taken[p] {
			return p, nil
		}
	}
	return netip.Prefix{}, api.Unavailable("the cluster's subnet %s has no free /%d for another node", subnet, sliceBits)
}

func removeNode(t tx, c RemoveNode) (Result, error) {
	n, ok := first[Node](t.Txn, tableNode, "id", c.ID)
	if !ok {
		return Result{}, nil
	}
	for _, x := range pointers[Container](t.Txn, tableContainer, "node", n.ID) {
		if err := forget(t, x); err != nil {
			return Result{}, err
		}
	}
	for _, i := range pointers[Image](t.Txn, tableImage, "node", n.ID) {
		if err := drop(t, tableImage, i); err != nil {
			return Result{}, err
		}
	}
	for _, v := range pointers[Volume](t.Txn, tableVolume, "node", n.ID) {
		if err := drop(t, tableVolume, v); err != nil {
			return Result{}, err
		}
	}
	if err := leaveAll(t, n.ID); err != nil {
		return Result{}, err
	}
	if err := drop(t, tableSeq, &nodeSeq{NodeID: n.ID}); err != nil {
		return Result{}, err
	}
	return Result{}, drop(t, tableNode, n)
}

func nodeTags(t tx, c NodeTags) (Result, error) {
	old, ok := first[Node](t.Txn, tableNode, "id", c.ID)
	if !ok {
		return Result{}, api.NotFound("node %s not found", c.ID)
	}
	n := *old
	var err error
	if n.Tags, err = edited(old.Tags, c.Set, c.Remove); err != nil {
		return Result{}, err
	}
	return Result{}, put(t, tableNode, &n)
}

// maxTags bounds what one object carries.
const maxTags = 1024

func edited(tags, set map[string]string, remove []string) (map[string]string, error) {
	out := make(map[string]string, len(tags)+len(set))
	maps.Copy(out, tags)
	for _, k := range remove {
		delete(out, k)
	}
	for k, v := range set {
		if k == "" || strings.ContainsAny(k, "= \t\n\x00") {
			return nil, api.InvalidArgument("invalid tag key %q", k)
		}
		out[k] = v
	}
	if len(out) > maxTags {
		return nil, api.InvalidArgument("more than %d tags", maxTags)
	}
	return out, nil
}

func setNodeDown(t tx, c SetNodeDown) (Result, error) {
	old, ok := first[Node](t.Txn, tableNode, "id", c.ID)
	if !ok || old.Down == c.Down {
		return Result{}, nil
	}
	n := *old
	n.Down = c.Down
	return Result{}, put(t, tableNode, &n)
}
