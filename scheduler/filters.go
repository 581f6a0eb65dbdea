package scheduler

import (
	"fmt"
	"strings"

	"github.com/docker/go-units"
)

// filter keeps containers off nodes that they don't fit.
type filter interface {
	admit(r *Request, n *NodeInfo) bool
	// why says what admit found wrong; it is asked only after a refusal, so that
	// the usual case formats nothing.
	why(r *Request, n *NodeInfo) string
	// passing says that the reason may go away while the caller waits.
	passing(r *Request, n *NodeInfo) bool
}

// filters run in this order. What the request itself rules out comes first: a
// node that could never do is not blamed for being full.
var filters = [...]filter{pinned{}, entitled{}, platform{}, cores{}, ruled{}, reachable{}, memory{}}

type pinned struct{}

func (pinned) admit(r *Request, n *NodeInfo) bool { return against(r, n) == nil }

func (pinned) why(r *Request, n *NodeInfo) string {
	return "the container is tied to another node: " + against(r, n).Why
}

func (pinned) passing(*Request, *NodeInfo) bool { return false }

func against(r *Request, n *NodeInfo) *Pin {
	for i := range r.Pins {
		if r.Pins[i].NodeID != n.ID {
			return &r.Pins[i]
		}
	}
	return nil
}

// entitled keeps images where they may be.
type entitled struct{}

func (entitled) admit(r *Request, n *NodeInfo) bool   { return r.Only == nil || r.Only[n.ID] }
func (entitled) why(r *Request, _ *NodeInfo) string   { return r.Why }
func (entitled) passing(_ *Request, _ *NodeInfo) bool { return false }

type platform struct{}

func (platform) admit(r *Request, n *NodeInfo) bool {
	return fits(r.Platform.OS, n.OS) && fits(r.Platform.Architecture, n.Arch)
}

func fits(want, have string) bool { return want == "" || have == "" || want == have }

func (platform) why(r *Request, n *NodeInfo) string {
	return fmt.Sprintf("needs platform %s, is %s",
		join(r.Platform.OS, r.Platform.Architecture), join(n.OS, n.Arch))
}

func join(os, arch string) string { return strings.Trim(os+"/"+arch, "/") }

func (platform) passing(*Request, *NodeInfo) bool { return false }

type cores struct{}

func (cores) admit(r *Request, n *NodeInfo) bool {
	return r.CPUs <= 0 || n.CPUs == 0 || r.CPUs <= float64(n.CPUs)
}

func (cores) why(r *Request, n *NodeInfo) string {
	return fmt.Sprintf("needs %g CPUs, has %d", r.CPUs, n.CPUs)
}

func (cores) passing(*Request, *NodeInfo) bool { return false }

// ruled holds constraints and affinities. An affinity may come true later, but
// not by waiting alone: somebody has to start what it asks for.
type ruled struct{}

func (ruled) admit(r *Request, n *NodeInfo) bool { return broken(r, n) == nil }

func (ruled) why(r *Request, n *NodeInfo) string { return broken(r, n).why(n) }

func (ruled) passing(*Request, *NodeInfo) bool { return false }

func broken(r *Request, n *NodeInfo) *Rule {
	for i := range r.Rules {
		if !r.Rules[i].Soft && !r.Rules[i].holds(n) {
			return &r.Rules[i]
		}
	}
	return nil
}

type reachable struct{}

func (reachable) admit(_ *Request, n *NodeInfo) bool { return n.Reachable }

func (reachable) why(*Request, *NodeInfo) string { return "can't be reached" }

func (reachable) passing(*Request, *NodeInfo) bool { return true }

type memory struct{}

func (memory) admit(r *Request, n *NodeInfo) bool {
	return r.Memory <= 0 || n.Memory == 0 || r.Memory <= n.Memory-n.Reserved
}

func (memory) why(r *Request, n *NodeInfo) string {
	return fmt.Sprintf("needs %s memory, %s free", bytes(r.Memory), bytes(max(0, n.Memory-n.Reserved)))
}

func (memory) passing(r *Request, n *NodeInfo) bool { return r.Memory <= n.Memory }

func bytes(n int64) string {
	return units.CustomSize("%.4g %s", float64(n), 1024, []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"})
}
