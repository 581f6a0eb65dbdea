package control

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster/catalog"
)

// Reader follows the agent's catalog from another process.
type Reader struct {
	client *Client
	mu     sync.Mutex
	last   snapshot
}

// snapshot is the catalog as the agent sends it.
type snapshot struct {
	At        uint64              `json:"index"`
	NodeList  []catalog.Node      `json:"nodes"`
	Boxes     []catalog.Container `json:"containers"`
	ImageList []catalog.Image     `json:"images"`
}

// Catalog reads the agent's catalog, and can wait for changes of it.
func (c *Client) Catalog(ctx context.Context) (*Reader, error) {
	r := &Reader{client: c}
	return r, r.read(ctx, "")
}

func (r *Reader) read(ctx context.Context, query string) error {
	var s snapshot
	if err := r.client.call(ctx, http.MethodGet, "/shoal/v1/catalog"+query, nil, &s); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = s
	return nil
}

// View implements catalog.Reader.
func (r *Reader) View() catalog.View {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

// Wait implements catalog.Reader. An agent that doesn't answer is asked again
// until ctx ends: it may be restarting.
func (r *Reader) Wait(ctx context.Context, after uint64) error {
	const again = time.Second
	for r.View().Index() <= after {
		err := r.read(ctx, fmt.Sprintf("?after=%d&wait=1m", after))
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil {
			// A restarted agent counts anew; whatever it says is news.
			if r.View().Index() < after {
				return nil
			}
			continue
		}
		t := time.NewTimer(again)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
	}
	return nil
}

// Index implements catalog.View, as do the methods below.
func (s snapshot) Index() uint64                   { return s.At }
func (s snapshot) Nodes() []catalog.Node           { return s.NodeList }
func (s snapshot) Containers() []catalog.Container { return s.Boxes }
func (s snapshot) Images() []catalog.Image         { return s.ImageList }

func (s snapshot) Node(idOrName string) (catalog.Node, bool) {
	i := slices.IndexFunc(s.NodeList, func(n catalog.Node) bool { return n.ID == idOrName || n.Name == idOrName })
	if i < 0 {
		return catalog.Node{}, false
	}
	return s.NodeList[i], true
}

func (s snapshot) Container(ref string) (catalog.Container, error) {
	i := slices.IndexFunc(s.Boxes, func(c catalog.Container) bool { return c.ID == ref || c.Name == ref })
	if i < 0 {
		return catalog.Container{}, api.NotFound("No such container: %s", ref)
	}
	return s.Boxes[i], nil
}

// Ref is not part of what is sent.
func (s snapshot) Ref(string) (catalog.Ref, bool) { return catalog.Ref{}, false }

// Private is not part of what is sent.
func (s snapshot) Private() []catalog.Private { return nil }

// Volumes is not part of what is sent.
func (s snapshot) Volumes() []catalog.Volume { return nil }

// Holders are the nodes that say they hold the digest.
func (s snapshot) Holders(digest string) []catalog.Node {
	var out []catalog.Node
	for _, i := range s.ImageList {
		if n, ok := s.Node(i.NodeID); ok && i.Digest == digest {
			out = append(out, n)
		}
	}
	return out
}
