package cluster

import (
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster/catalog"
)

// maxAdminBody bounds what a request of the administration may say.
const maxAdminBody = 1 << 20

// NodeStatus is a node as the administration shows it.
type NodeStatus struct {
	catalog.Node
	Leader     bool
	Reachable  bool
	Containers int
}

// Status is what this node knows of its cluster.
type Status struct {
	Member    bool
	ID, Name  string
	Leader    string `json:",omitempty"` // the node's name
	Nodes     int
	Reachable int
	Index     uint64 // of the catalog here
}

// Holding is one node's copy of an image.
type Holding struct {
	Node   string
	Digest string
	Tags   []string
	// Private says which nodes may hold the image, if not all may, and Allowed whether
	// this one may.
	Private string `json:",omitempty"`
	Allowed bool
}

// Handler serves what Docker's API has no words for, under /shoal/v1/. Errors are
// {"message": …} with the status of their class.
func (c *Cluster) Handler() http.Handler {
	mux := http.NewServeMux()
	for pattern, f := range map[string]func(*http.Request) (any, error){
		"GET status": c.serveStatus,
		"POST init":  func(r *http.Request) (any, error) { return nil, c.Init(r.Context()) },
		"POST join":  c.serveJoinCall,
		"POST leave": func(r *http.Request) (any, error) { return nil, c.Leave(r.Context()) },
		"GET token":  func(r *http.Request) (any, error) { return tokenOf(c.Token(r.Context())) },
		"POST token": func(r *http.Request) (any, error) { return tokenOf(c.RotateToken(r.Context())) },
		"GET nodes":  c.serveNodes,
		"DELETE nodes/{id}": func(r *http.Request) (any, error) {
			return nil, c.RemoveNode(r.Context(), r.PathValue("id"), r.URL.Query().Get("force") == "true")
		},
		"PATCH nodes/{id}/tags":      c.serveNodeTags,
		"PATCH containers/{id}/tags": c.serveContainerTags,
		"GET images/where":           c.serveWhere,
		"GET images/private":         c.servePrivate,
		"PUT images/private":         c.serveMakePrivate,
		"DELETE images/private":      c.serveMakePublic,
	} {
		method, path, _ := strings.Cut(pattern, " ")
		mux.HandleFunc(method+" /shoal/v1/"+path, func(w http.ResponseWriter, r *http.Request) {
			r.Body = http.MaxBytesReader(w, r.Body, maxAdminBody)
			out, err := f(r)
			c.reply(w, r, out, err)
		})
	}
	mux.HandleFunc("POST /shoal/v1/images/copy", c.serveCopy)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		c.reply(w, r, nil, api.NotFound("page not found"))
	})
	return mux
}

// reply is the one place that writes answers.
func (c *Cluster) reply(w http.ResponseWriter, r *http.Request, out any, err error) {
	status := http.StatusOK
	switch {
	case err != nil:
		status, out = api.Status(err), map[string]string{"message": err.Error()}
		c.log.Debug("refused", "method", r.Method, "path", r.URL.Path, "status", status, "error", err)
	case out == nil:
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	_ = e.Encode(out) // the caller may be gone
}

// body reads a request's JSON; none at all is the zero value.
func body[T any](r *http.Request) (T, error) {
	var v T
	d := json.NewDecoder(r.Body)
	if err := d.Decode(&v); err != nil && r.ContentLength != 0 {
		return v, api.InvalidArgument("invalid JSON: %w", err)
	}
	return v, nil
}

func tokenOf(t string, err error) (any, error) { return struct{ Token string }{t}, err }

func (c *Cluster) serveJoinCall(r *http.Request) (any, error) {
	in, err := body[struct{ Token string }](r)
	if err != nil {
		return nil, err
	}
	return nil, c.Join(r.Context(), in.Token)
}

func (c *Cluster) serveStatus(*http.Request) (any, error) {
	out := Status{ID: c.cfg.Self.ID, Name: c.cfg.Self.Name}
	s, err := c.current()
	if err != nil {
		return out, nil
	}
	v := s.live.View()
	out.Member, out.Index = s.entered(), v.Index()
	leader, _ := s.cat.Leader()
	for _, n := range v.Nodes() {
		out.Nodes++
		if s.alive(n.ID) {
			out.Reachable++
		}
		if n.ID == leader {
			out.Leader = n.Name
		}
	}
	return out, nil
}

func (c *Cluster) serveNodes(r *http.Request) (any, error) {
	s, err := c.current()
	if err != nil {
		return nil, err
	}
	s.router.sync(r.Context(), listSync)
	v := s.live.View()
	leader, _ := s.cat.Leader()
	count := map[string]int{}
	for _, x := range v.Containers() {
		count[x.NodeID]++
	}
	out := []NodeStatus{}
	for _, n := range v.Nodes() {
		out = append(out, NodeStatus{Node: n, Leader: n.ID == leader, Reachable: s.alive(n.ID), Containers: count[n.ID]})
	}
	return out, nil
}

// tagEdit is a change of tags.
type tagEdit struct {
	Set    map[string]string
	Remove []string
}

func (c *Cluster) serveNodeTags(r *http.Request) (any, error) {
	in, err := body[tagEdit](r)
	if err != nil {
		return nil, err
	}
	tags, err := c.SetNodeTags(r.Context(), r.PathValue("id"), in.Set, in.Remove)
	return shownTags(tags), err
}

func (c *Cluster) serveContainerTags(r *http.Request) (any, error) {
	in, err := body[tagEdit](r)
	if err != nil {
		return nil, err
	}
	tags, err := c.SetContainerTags(r.Context(), r.PathValue("id"), in.Set, in.Remove)
	return shownTags(tags), err
}

// shownTags is never null.
func shownTags(tags map[string]string) map[string]string {
	if tags == nil {
		return map[string]string{}
	}
	return tags
}

func (c *Cluster) serveWhere(r *http.Request) (any, error) {
	s, err := c.current()
	if err != nil {
		return nil, err
	}
	img, err := s.router.image(r.Context(), r.URL.Query().Get("ref"))
	if err != nil {
		return nil, err
	}
	out := []Holding{}
	v := s.live.View()
	may, _ := only(v, img)
	private := ""
	if may != nil {
		var names []string
		for _, n := range v.Nodes() {
			if may[n.ID] {
				names = append(names, n.Name)
			}
		}
		private = cmp.Or(strings.Join(names, ", "), "no node")
	}
	for _, n := range v.Nodes() {
		if _, ok := img.holders[n.ID]; ok {
			out = append(out, Holding{Node: n.Name, Digest: img.digest, Tags: slices.Clone(img.names), Private: private, Allowed: may == nil || may[n.ID]})
		}
	}
	return out, nil
}
