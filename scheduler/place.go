package scheduler

import (
	"math/rand/v2"
	"strings"

	"github.com/shoal-engine/shoal/api"
)

// Place chooses the node for a container. Of the nodes that fit it takes those
// that meet most soft rules, of these the ones with the fewest running containers,
// of these the ones that hold the image, and of these one by chance. The same
// view, request and state of rnd always give the same node.
//
// If no node fits, the error's text lists every node with the first reason against
// it. Its class is Unavailable if waiting may help (a node can't be reached or is
// full, or there is none) and InvalidArgument if the request itself rules every
// node out.
func Place(v View, r Request, rnd *rand.Rand) (Decision, error) {
	var best *NodeInfo
	var top score
	fit, ties := 0, 0
	for i := range v.Nodes {
		n := &v.Nodes[i]
		if refusing(&r, n) != nil {
			continue
		}
		fit++
		s := rate(&r, n)
		switch {
		case best == nil || s.above(top):
			best, top, ties = n, s, 1
		case s == top:
			// Keeping the k-th of equals with probability 1/k chooses evenly in one pass.
			if ties++; rnd.IntN(ties) == 0 {
				best = n
			}
		}
	}
	if best == nil {
		return Decision{}, refusal(v, &r)
	}
	return Decision{
		NodeID: best.ID, NodeName: best.Name,
		Fit: fit, Running: best.Running, HasImage: top.image, Soft: top.soft,
	}, nil
}

// score says how well a node suits; see Place for the order.
type score struct {
	soft, running int
	image         bool
}

func rate(r *Request, n *NodeInfo) score {
	s := score{running: n.Running, image: r.Image != "" && n.Images[r.Image]}
	for i := range r.Rules {
		if r.Rules[i].Soft && r.Rules[i].holds(n) {
			s.soft++
		}
	}
	return s
}

func (s score) above(t score) bool {
	if s.soft != t.soft {
		return s.soft > t.soft
	}
	if s.running != t.running {
		return s.running < t.running
	}
	return s.image && !t.image
}

// refusing is the first filter that keeps the container off the node, or nil.
func refusing(r *Request, n *NodeInfo) filter {
	for _, f := range filters {
		if !f.admit(r, n) {
			return f
		}
	}
	return nil
}

// refusal is the error for a request that fits nowhere.
func refusal(v View, r *Request) error {
	if len(v.Nodes) == 0 {
		return api.Unavailable("no node fits: the cluster has no nodes")
	}
	var text strings.Builder
	text.WriteString("no node fits: ")
	passing := false
	for i := range v.Nodes {
		n := &v.Nodes[i]
		f := refusing(r, n)
		passing = passing || f.passing(r, n)
		if i > 0 {
			text.WriteString("; ")
		}
		text.WriteString(n.Name)
		text.WriteString(": ")
		text.WriteString(f.why(r, n))
	}
	if passing {
		return api.Unavailable("%s", text.String())
	}
	return api.InvalidArgument("%s", text.String())
}
