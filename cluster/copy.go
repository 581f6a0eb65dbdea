package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/jsonstream"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster/catalog"
)

// copiesAtOnce is how many nodes one copy brings an image to at the same time. Nodes
// that fetch together get most of it from each other, so it is many.
const copiesAtOnce = 64

// What the lines of a copy say of a node. The last two are a node's last word.
const (
	copyWaiting = "Waiting"
	copyRunning = "Copying"
	copyHere    = "Already there"
	copyDone    = "Complete"
	copyFailed  = "Failed"
)

// CopyDetail is the aux field of a line about a copy.
type CopyDetail struct {
	// Peers is how many bytes have come from which node so far, as they were on the
	// wire; nothing is known of those from registries.
	Peers map[string]int64 `json:"peers,omitempty"`
	// Final says that no line about this node follows.
	Final bool `json:"final,omitempty"`
}

// CopyTo says which nodes are to have a copy: the union of what it names, or, if it
// names nothing, all that may hold the image.
type CopyTo struct {
	Nodes []string // names, IDs, and tag:KEY=VALUE for all that have the tag
	// Users are the containers on whose nodes it is wanted, filtered as docker ps does.
	Users api.Filters
}

func (t CopyTo) all() bool { return len(t.Nodes) == 0 && len(t.Users) == 0 }

// Copy brings an image to nodes.
// The lines of the stream have nodes' names as IDs. A node that fails says so in its
// last line and doesn't keep others from theirs; the stream itself fails only if
// there is nothing to copy, or nowhere to.
func (r *Router) Copy(ctx context.Context, ref string, to CopyTo) (api.Stream[api.Progress], error) {
	r.sync(ctx, listSync)
	img, err := r.image(ctx, ref)
	if err != nil {
		return nil, err
	}
	targets, err := r.copyTargets(ctx, to)
	if err != nil {
		return nil, err
	}
	if may, why := only(r.reader.View(), img); may != nil && to.all() {
		targets = slices.DeleteFunc(slices.Clone(targets), func(n catalog.Node) bool { return !may[n.ID] })
		if len(targets) == 0 {
			return nil, api.Errorf(errdefs.ErrPermissionDenied, "%s", why)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	stream, send, finish := api.Pipe[api.Progress](ctx)
	go func() {
		defer cancel()
		var g errgroup.Group
		g.SetLimit(copiesAtOnce)
		for _, n := range targets {
			if err := send(copyLine(n.Name, copyWaiting, nil)); err != nil {
				break // nobody listens
			}
		}
		for _, n := range targets {
			g.Go(func() error {
				return r.copyTo(ctx, n, img, api.PullOptions{Ref: img.pullName(ref), Digest: img.digest}, send)
			})
		}
		finish(g.Wait())
	}()
	return copying[api.Progress]{stream, cancel}, nil
}

// copying is a stream whose end cancels what feeds it.
type copying[T any] struct {
	api.Stream[T]
	cancel context.CancelFunc
}

func (c copying[T]) Close() error {
	c.cancel()
	return c.Stream.Close()
}

func (r *Router) copyTargets(ctx context.Context, to CopyTo) ([]catalog.Node, error) {
	v := r.reader.View()
	if to.all() {
		return v.Nodes(), nil
	}
	var out []catalog.Node
	for _, who := range to.Nodes {
		some, err := nodesCalled(v, who)
		if err != nil {
			return nil, err
		}
		out = append(out, some...)
	}
	if len(to.Users) > 0 {
		users, err := r.ListContainers(ctx, api.ListOptions{Filters: to.Users})
		if err != nil {
			return nil, err
		}
		if len(users) == 0 {
			return nil, api.NotFound("no container matches the filter, so there is no node to copy to")
		}
		v = r.reader.View()
		for _, u := range users {
			c, err := v.Container(u.ID)
			if err != nil {
				continue // removed since
			}
			if n, ok := v.Node(c.NodeID); ok {
				out = append(out, n)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b catalog.Node) int { return cmp.Compare(a.Name, b.Name) })
	return slices.CompactFunc(out, func(a, b catalog.Node) bool { return a.ID == b.ID }), nil
}

// nodesCalled are the node of a name or ID, or all that have the tag of tag:KEY=VALUE.
func nodesCalled(v catalog.View, who string) ([]catalog.Node, error) {
	tag, ok := strings.CutPrefix(who, tagPrefix)
	if !ok {
		n, ok := v.Node(who)
		if !ok {
			return nil, noSuchNode(who)
		}
		return []catalog.Node{n}, nil
	}
	key, value, ok := strings.Cut(tag, "=")
	if !ok || key == "" {
		return nil, api.InvalidArgument("%s: write %sKEY=VALUE", who, tagPrefix)
	}
	found := slices.DeleteFunc(slices.Clone(v.Nodes()), func(n catalog.Node) bool {
		has, there := n.Tags[key]
		return !there || has != value
	})
	if len(found) == 0 {
		return nil, api.NotFound("no node has the tag %s", tag)
	}
	return found, nil
}

func copyLine(node, status string, d *CopyDetail) api.Progress {
	p := api.Progress{ID: node, Status: status}
	if d != nil {
		raw, _ := json.Marshal(d) // strings and numbers
		p.Aux = (*json.RawMessage)(&raw)
	}
	return p
}

// copyTo brings an image to one node and tells of it. An error means that nobody
// listens any more.
func (r *Router) copyTo(ctx context.Context, n catalog.Node, img *clusterImage, o api.PullOptions, send func(api.Progress) error) error {
	t := tally{node: n.Name, name: r.nodeName, layers: map[string]jsonstream.Progress{}}
	var gone error
	err := r.may(n.ID, img)
	if err == nil {
		err = r.pullOn(ctx, n, o, func(p api.Progress) {
			if line, ok := t.add(p); ok && gone == nil {
				gone = send(line)
			}
		})
	}
	if gone != nil {
		return gone
	}
	last := copyLine(n.Name, t.verdict(), &CopyDetail{Peers: t.peers, Final: true})
	if err != nil {
		last.Status, last.Error = copyFailed, &jsonstream.Error{Code: api.Status(err), Message: err.Error()}
	} else if sum := t.sum(); sum.Total > 0 {
		last.Progress = &sum
	}
	return send(last)
}

// pullOn has a node pull and passes on what it says.
func (r *Router) pullOn(ctx context.Context, n catalog.Node, o api.PullOptions, say func(api.Progress)) error {
	if n.ID != r.self && lostNodes(r.reader.View())(n.ID) {
		return api.Unavailable("node %s can't be reached", n.Name)
	}
	e, err := r.peer(ctx, n.ID)
	if err != nil {
		return err
	}
	s, err := e.PullImage(ctx, o)
	if err != nil {
		return err
	}
	for p, err := range api.All(s) {
		if err != nil {
			return err
		}
		if p.Error != nil {
			return api.FromStatus(p.Error.Code, p.Error.Message)
		}
		say(p)
	}
	return nil
}

// tally makes of what a node says of layers what it says of the image.
type tally struct {
	node    string
	name    func(id string) string // of nodes
	layers  map[string]jsonstream.Progress
	peers   map[string]int64
	current bool // the node had it before
}

// add takes a line of the node's in; ok means that there is something new to tell.
func (t *tally) add(p api.Progress) (line api.Progress, ok bool) {
	fresh := t.attribute(p)
	switch {
	case p.Progress != nil && p.Status == "Downloading":
		t.layers[p.ID] = *p.Progress
	case p.Status == "Download complete":
		l := t.layers[p.ID]
		l.Current = l.Total
		t.layers[p.ID] = l
	case strings.HasPrefix(p.Status, "Status: Image is up to date"):
		t.current = true
		return line, false
	case !fresh:
		return line, false
	}
	line = copyLine(t.node, copyRunning, nil)
	if len(t.peers) > 0 {
		line = copyLine(t.node, copyRunning, &CopyDetail{Peers: t.peers})
	}
	sum := t.sum()
	line.Progress = &sum
	return line, true
}

// attribute takes in who sent how much, if a line says so.
func (t *tally) attribute(p api.Progress) bool {
	var d CopyDetail
	if p.Aux == nil || json.Unmarshal(*p.Aux, &d) != nil || len(d.Peers) == 0 {
		return false
	}
	t.peers = map[string]int64{}
	for id, bytes := range d.Peers {
		t.peers[t.name(id)] += bytes
	}
	return true
}

// sum is of the layers whose fetch has begun: the rest's sizes are not known yet.
func (t *tally) sum() (all jsonstream.Progress) {
	for _, l := range t.layers {
		all.Current += l.Current
		all.Total += l.Total
	}
	return all
}

func (t *tally) verdict() string {
	if t.current && len(t.layers) == 0 {
		return copyHere
	}
	return copyDone
}

// serveCopy answers with the lines of a copy.
func (c *Cluster) serveCopy(w http.ResponseWriter, r *http.Request) {
	s, err := c.current()
	if err != nil {
		c.reply(w, r, nil, err)
		return
	}
	q := r.URL.Query()
	users, err := api.ParseFilters(q.Get("users"))
	if err != nil {
		c.reply(w, r, nil, err)
		return
	}
	stream, err := s.router.Copy(r.Context(), q.Get("ref"), CopyTo{Nodes: q["node"], Users: users})
	if err != nil {
		c.reply(w, r, nil, err)
		return
	}
	defer stream.Close()
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := http.NewResponseController(w)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	for line, err := range api.All(stream) {
		if err != nil {
			line = api.Progress{Status: copyFailed, Error: &jsonstream.Error{Code: api.Status(err), Message: err.Error()}}
		}
		if e.Encode(line) != nil || out.Flush() != nil {
			return // the caller is gone
		}
	}
}
