package agent

import (
	"context"
	"log/slog"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-engine/shoal/cluster/access"
	"github.com/shoal-engine/shoal/node/image"
	"github.com/shoal-engine/shoal/transfer"
	"github.com/shoal-engine/shoal/transfer/plugin"
)

// buildPlugins makes what the configuration names, and the order in which blobs are
// asked for: other nodes first. Registries, which know names, come after these.
func (a *Agent) buildPlugins(dir string) ([]transfer.Fetcher, error) {
	c := a.cfg.Transport
	fetchers := []transfer.Fetcher{a.peers}
	for _, name := range c.Plugins {
		p, err := plugin.New(plugin.Config{
			Name: name, Bin: c.PluginDir, Dir: filepath.Join(dir, name), Settings: c.Settings[name], Logger: a.log,
		})
		if err != nil {
			return nil, err
		}
		if err := p.Check(); err != nil {
			// It may be installed later; containers can't wait for that.
			a.log.Warn("transport plugin can't be used", "plugin", name, "error", err)
		}
		a.plugins = append(a.plugins, p)
		fetchers = append(fetchers, p)
	}
	return fetchers, nil
}

// runPlugins runs the plugins, and offers them images if the configuration says so.
func (a *Agent) runPlugins(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, p := range a.plugins {
		g.Go(func() error { return p.Run(ctx) })
		if a.cfg.Transport.Offer {
			o := newOffers(p, a.images, a.policy, a.log)
			a.images.OnChange(o.changed)
			g.Go(func() error { return o.run(ctx) })
		}
	}
	return g.Wait()
}

// maxOffers is how many images wait to be offered to a plugin.
const maxOffers = 256

// offers gives one plugin what comes to this host, one image after the other.
type offers struct {
	plugin *plugin.Plugin
	images *image.Store
	policy *access.Policy
	log    *slog.Logger
	due    chan string // IDs of images
}

func newOffers(p *plugin.Plugin, images *image.Store, policy *access.Policy, log *slog.Logger) *offers {
	return &offers{p, images, policy, log.With("plugin", p.Name()), make(chan string, maxOffers)}
}

// changed hears of what happens to images. It never waits.
func (o *offers) changed(action, id, _ string) {
	switch action {
	case "load", "import", "pull":
	default:
		return
	}
	select {
	case o.due <- id:
	default:
		o.log.Warn("image is not offered to a plugin that is too slow", "image", id)
	}
}

func (o *offers) run(ctx context.Context) error {
	for {
		select {
		case id := <-o.due:
			o.offer(ctx, id)
		case <-ctx.Done():
			return nil
		}
	}
}

// offer goes on after a blob that could not be given: others may be. What is private
// to nodes isn't offered: a plugin may show it to anybody.
func (o *offers) offer(ctx context.Context, id string) {
	img, err := o.images.Get(ctx, id)
	if err != nil {
		return // it went again
	}
	if err := o.policy.Image(access.Outside, img.Target.Digest, img.ID); err != nil {
		o.log.Info("image is not offered to a plugin", "image", id, "reason", err)
		return
	}
	blobs := []digest.Digest{img.Target.Digest, img.Manifest.Digest, img.ID}
	for _, l := range img.Layers {
		blobs = append(blobs, l.Digest)
	}
	for _, d := range blobs {
		if err := o.plugin.Offer(ctx, o.images, d); err != nil && ctx.Err() == nil {
			o.log.Warn("blob could not be given to a plugin", "image", id, "error", err)
		}
	}
}
