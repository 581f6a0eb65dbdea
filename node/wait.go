package node

import (
	"context"

	"github.com/moby/moby/api/types/container"

	"github.com/shoal-engine/shoal/api"
)

// WaitContainer implements api.Observers.
func (n *Node) WaitContainer(ctx context.Context, id string, cond container.WaitCondition) (api.Stream[container.WaitResponse], error) {
	switch cond {
	case "":
		cond = container.WaitConditionNotRunning
	case container.WaitConditionNotRunning, container.WaitConditionNextExit, container.WaitConditionRemoved:
	default:
		return nil, api.InvalidArgument("invalid condition: %q", cond)
	}
	c, err := n.find(ctx, id)
	if err != nil {
		return nil, err
	}
	w := c.addWaiter(cond)
	return api.One(ctx, func(ctx context.Context) (container.WaitResponse, error) {
		defer c.dropWaiter(w)
		select {
		case r := <-w.result:
			return r, nil
		case <-ctx.Done():
			return container.WaitResponse{}, context.Cause(ctx)
		case <-n.life.Done():
			return container.WaitResponse{}, context.Cause(n.life)
		}
	}), nil
}
