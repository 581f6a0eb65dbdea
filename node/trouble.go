package node

import (
	"github.com/moby/moby/api/types/container"

	"github.com/shoal-engine/shoal/api"
)

// imageTrouble writes down that a container's image has stopped arriving. With stop the
// container began with what isn't its image: it is ended, and no policy revives it.
func (n *Node) imageTrouble(id string, reason error, stop bool) {
	c, err := n.find(n.life, id)
	if err != nil {
		return // it was removed meanwhile
	}
	if !c.get().State.active() {
		return
	}
	n.log.Error("trouble with a container's image", "container", c.id, "reason", reason, "stops", stop)
	if stop {
		now := 0
		if err := n.stop(c, api.StopOptions{Timeout: &now, Signal: "SIGKILL"}, false); err != nil {
			n.log.Error("stop a container whose image is wrong", "container", c.id, "err", err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	err = c.forceLocked(func(r *record) error {
		if stop || r.State.Status == container.StateRunning {
			r.State.Error = reason.Error()
		}
		return nil
	})
	if err != nil {
		n.log.Error("write down trouble with a container's image", "container", c.id, "err", err)
	}
}
