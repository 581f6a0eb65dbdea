package network

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// table is the kernel's nftables table and what this process last made of it. Not safe for
// concurrent use.
type table struct {
	host    host
	name    string
	applied *desired // nil: unknown, the next apply replaces the table
}

func (t *table) kernel() *nftables.Table {
	return &nftables.Table{Name: t.name, Family: nftables.TableFamilyINet}
}

// apply makes the kernel's table as desired, in one transaction. If it fails the kernel's
// table is as before.
func (t *table) apply(d desired) error {
	d.ports, d.peers = maps.Clone(d.ports), slices.Clone(d.peers)
	if t.applied != nil && reflect.DeepEqual(t.applied.frame, d.frame) {
		// Somebody may have changed the table behind our back: then replace it.
		if err := t.host.do(func() error { return t.adjust(*t.applied, d) }); err == nil {
			t.applied = &d
			return nil
		}
	}
	t.applied = nil
	if err := t.host.do(func() error { return t.replace(d) }); err != nil {
		return fmt.Errorf("replace nftables table %s: %w", t.name, err)
	}
	t.applied = &d
	return nil
}

// adjust changes only the elements that differ.
func (t *table) adjust(have, want desired) error {
	changes := diffPorts(have.ports, want.ports)
	if len(changes) == 0 && slices.Equal(have.peers, want.peers) {
		return nil
	}
	c, err := nftables.New()
	if err != nil {
		return err
	}
	sets := t.sets()
	for _, ch := range changes {
		name, e := element(ch.key, ch.to)
		if ch.to.IsValid() {
			err = c.SetAddElements(sets[name], []nftables.SetElement{e})
		} else {
			err = c.SetDeleteElements(sets[name], []nftables.SetElement{e})
		}
		if err != nil {
			return err
		}
	}
	if !slices.Equal(have.peers, want.peers) {
		c.FlushSet(sets[setPeers])
		if err := addElements(c, sets[setPeers], peerElements(want.peers)); err != nil {
			return err
		}
	}
	return c.Flush()
}

// replace makes the table anew; one of before goes in the same transaction.
func (t *table) replace(d desired) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	kt := t.kernel()
	c.AddTable(kt) // so that the deletion has something to delete
	c.DelTable(kt)
	c.AddTable(kt)
	elements := map[string][]nftables.SetElement{setPeers: peerElements(d.peers)}
	for k, to := range d.ports {
		name, e := element(k, to)
		elements[name] = append(elements[name], e)
	}
	sets := t.sets()
	for _, name := range []string{mapAny, mapBound, setPeers} {
		if err := c.AddSet(sets[name], nil); err != nil {
			return err
		}
		if err := addElements(c, sets[name], elements[name]); err != nil {
			return err
		}
	}
	policy := nftables.ChainPolicyAccept
	for _, ch := range d.chains() {
		kc := &nftables.Chain{Name: ch.name, Table: kt, Type: ch.kind, Hooknum: ch.hook, Priority: ch.priority}
		if ch.kind != "" {
			kc.Policy = &policy
		}
		c.AddChain(kc)
		for _, r := range ch.rules {
			c.AddRule(&nftables.Rule{Table: kt, Chain: kc, Exprs: r.exprs})
		}
	}
	return c.Flush()
}

// there reports whether the kernel has the table.
func (t *table) there() (found bool, err error) {
	err = t.host.do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
		found = slices.ContainsFunc(tables, func(kt *nftables.Table) bool { return kt.Name == t.name })
		return err
	})
	return found, err
}

// remove deletes the table.
func (t *table) remove() error {
	t.applied = nil
	return t.host.do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.DelTable(t.kernel())
		if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("delete nftables table %s: %w", t.name, err)
		}
		return nil
	})
}

// sets are the table's named sets. The IDs only tell them apart within a transaction.
func (t *table) sets() map[string]*nftables.Set {
	kt := t.kernel()
	target := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	return map[string]*nftables.Set{
		mapAny: {ID: 1, Table: kt, Name: mapAny, IsMap: true, Concatenation: true,
			KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService), DataType: target},
		mapBound: {ID: 2, Table: kt, Name: mapBound, IsMap: true, Concatenation: true,
			KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService), DataType: target},
		setPeers: {ID: 3, Table: kt, Name: setPeers, KeyType: nftables.TypeIPAddr},
	}
}

func peerElements(peers []netip.Addr) []nftables.SetElement {
	var es []nftables.SetElement
	for _, p := range peers {
		es = append(es, nftables.SetElement{Key: p.AsSlice()})
	}
	return es
}

// addElements adds in portions: all elements of a message share one attribute of 64 KiB.
func addElements(c *nftables.Conn, s *nftables.Set, es []nftables.SetElement) error {
	for part := range slices.Chunk(es, 256) {
		if err := c.SetAddElements(s, part); err != nil {
			return err
		}
	}
	return nil
}
