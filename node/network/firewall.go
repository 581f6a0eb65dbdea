package network

import (
	"bytes"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// openFirewall lets container traffic pass a FORWARD chain of iptables that drops by
// default, as dockerd and many hosts set it: a packet must pass every table, so our own
// can't let it. The rules are those iptables itself would write, at the front. Firewalls of
// other kinds are named in the log, their owner has to open them. Caller holds kernel.
func (n *Network) openFirewall() error {
	return n.host.do(func() error {
		c, err := nftables.New()
		if err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
		chains, err := c.ListChains()
		if err != nil {
			return fmt.Errorf("list nftables chains: %w", err)
		}
		for _, ch := range chains {
			if !dropsForwarded(ch) || ch.Table.Name == n.table.name {
				continue
			}
			if !ofIptables(ch) {
				n.log.Warn("a firewall drops forwarded packets by default; it has to let containers pass",
					"table", ch.Table.Name, "chain", ch.Name, "interfaces", bridgeName(n.cfg.Scope)+" "+vxlanName(n.cfg.Scope))
				continue
			}
			have, err := n.ourRules(c, ch)
			if err != nil {
				return err
			}
			if len(have) > 0 {
				continue
			}
			for _, link := range n.ourLinks() {
				for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
					c.InsertRule(&nftables.Rule{Table: ch.Table, Chain: ch, Exprs: []expr.Any{
						&expr.Meta{Key: key, Register: 1},
						&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: iptablesName(link)},
						&expr.Counter{},
						&expr.Verdict{Kind: expr.VerdictAccept},
					}})
				}
			}
		}
		if err := c.Flush(); err != nil {
			return fmt.Errorf("let containers pass iptables: %w", err)
		}
		return nil
	})
}

// closeFirewall takes the rules of openFirewall back. Caller holds kernel.
func (n *Network) closeFirewall() error {
	return n.host.do(func() error {
		c, err := nftables.New()
		if err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
		chains, err := c.ListChains()
		if err != nil {
			return fmt.Errorf("list nftables chains: %w", err)
		}
		for _, ch := range chains {
			if !ofIptables(ch) {
				continue
			}
			rules, err := n.ourRules(c, ch)
			if err != nil {
				return err
			}
			for _, r := range rules {
				if err := c.DelRule(r); err != nil {
					return fmt.Errorf("take back rules of iptables: %w", err)
				}
			}
		}
		if err := c.Flush(); err != nil {
			return fmt.Errorf("take back rules of iptables: %w", err)
		}
		return nil
	})
}

func (n *Network) ourLinks() []string {
	return []string{bridgeName(n.cfg.Scope), vxlanName(n.cfg.Scope)}
}

// ourRules are the rules of a chain that accept packets because of one of our links.
func (n *Network) ourRules(c *nftables.Conn, ch *nftables.Chain) ([]*nftables.Rule, error) {
	rules, err := c.GetRules(ch.Table, ch)
	if err != nil {
		return nil, fmt.Errorf("list rules of %s %s: %w", ch.Table.Name, ch.Name, err)
	}
	var ours []*nftables.Rule
	for _, r := range rules {
		if len(r.Exprs) != 4 {
			continue
		}
		cmp, ok := r.Exprs[1].(*expr.Cmp)
		if !ok {
			continue
		}
		for _, link := range n.ourLinks() {
			if bytes.Equal(cmp.Data, iptablesName(link)) {
				ours = append(ours, r)
			}
		}
	}
	return ours, nil
}

func dropsForwarded(c *nftables.Chain) bool {
	return c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop &&
		(c.Table.Family == nftables.TableFamilyIPv4 || c.Table.Family == nftables.TableFamilyINet)
}

// ofIptables tells the chain that iptables' nft variant keeps its FORWARD rules in.
func ofIptables(c *nftables.Chain) bool {
	return c.Table.Family == nftables.TableFamilyIPv4 && c.Table.Name == "filter" && c.Name == "FORWARD"
}

// iptablesName is a link's name as iptables compares it: with the zero that ends it.
func iptablesName(link string) []byte { return append([]byte(link), 0) }
