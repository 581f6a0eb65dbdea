// Package control asks an agent for what Docker's API has no words for: its cluster, tags, look-ups.
package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster"
	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/discovery"
	"github.com/shoal-engine/shoal/node/image"
)

// maxAnswer bounds what is read of an answer that isn't a stream.
const maxAnswer = 256 << 20

// Client talks to the agent behind one unix socket. Its methods may be called
// concurrently.
type Client struct {
	socket string
	http   *http.Client
}

// New makes a client; it connects when it is used.
func New(socket string) *Client {
	return &Client{socket, &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true, // most commands ask once
	}}}
}

// Node is a host as the cluster sees it.
type Node struct {
	catalog.Node
	Leader     bool
	Reachable  bool
	Containers int
}

// Ready says whether the node takes part.
func (n Node) Ready() bool { return n.Reachable && !n.Down }

// Role is leader, voter or member.
func (n Node) Role() string {
	switch {
	case n.Leader:
		return "leader"
	case n.Voter:
		return "voter"
	}
	return "member"
}

// Holding is one node's copy of an image.
type Holding struct {
	Node   string
	Digest string
	Tags   []string
	// Private names the nodes that may hold the image, if not all may; Allowed says
	// whether this one may.
	Private string `json:",omitempty"`
	Allowed bool
}

// PrivateImage is an image that only some nodes may hold.
type PrivateImage = cluster.PrivateImage

// Ping says whether the agent answers.
func (c *Client) Ping(ctx context.Context) error {
	return c.call(ctx, http.MethodGet, "/_ping", nil, nil)
}

// Init makes the agent's node the first of a cluster.
func (c *Client) Init(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/shoal/v1/init", struct{}{}, nil)
}

// Join brings the agent's node into a cluster.
func (c *Client) Join(ctx context.Context, token string) error {
	return c.call(ctx, http.MethodPost, "/shoal/v1/join", map[string]string{"token": token}, nil)
}

// Leave takes the agent's node out of its cluster.
func (c *Client) Leave(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/shoal/v1/leave", struct{}{}, nil)
}

// Token is what other hosts join with.
func (c *Client) Token(ctx context.Context) (string, error) { return c.token(ctx, http.MethodGet) }

// RotateToken makes a new token and the old one worthless.
func (c *Client) RotateToken(ctx context.Context) (string, error) {
	return c.token(ctx, http.MethodPost)
}

func (c *Client) token(ctx context.Context, method string) (string, error) {
	var out struct{ Token string }
	err := c.call(ctx, method, "/shoal/v1/token", nil, &out)
	return out.Token, err
}

// Nodes lists the cluster's nodes by name.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	var out []Node
	return out, c.call(ctx, http.MethodGet, "/shoal/v1/nodes", nil, &out)
}

// RemoveNode forgets a node; force also one that is up.
func (c *Client) RemoveNode(ctx context.Context, node string, force bool) error {
	return c.call(ctx, http.MethodDelete, fmt.Sprintf("/shoal/v1/nodes/%s?force=%t", url.PathEscape(node), force), nil, nil)
}

// edit changes tags.
type edit struct {
	Set    map[string]string `json:"set,omitempty"`
	Remove []string          `json:"remove,omitempty"`
}

// TagNode changes a node's tags and returns all of them.
func (c *Client) TagNode(ctx context.Context, node string, set map[string]string, remove []string) (map[string]string, error) {
	return c.tag(ctx, "nodes", node, edit{set, remove})
}

// TagContainer changes a container's tags and returns all of them.
func (c *Client) TagContainer(ctx context.Context, ref string, set map[string]string, remove []string) (map[string]string, error) {
	return c.tag(ctx, "containers", ref, edit{set, remove})
}

func (c *Client) tag(ctx context.Context, kind, object string, e edit) (map[string]string, error) {
	var out map[string]string
	return out, c.call(ctx, http.MethodPatch, "/shoal/v1/"+kind+"/"+url.PathEscape(object)+"/tags", e, &out)
}

// ImageWhere lists who holds an image.
func (c *Client) ImageWhere(ctx context.Context, ref string) ([]Holding, error) {
	var out []Holding
	return out, c.call(ctx, http.MethodGet, "/shoal/v1/images/where?ref="+url.QueryEscape(ref), nil, &out)
}

// PrivateImages lists the private images, or one.
func (c *Client) PrivateImages(ctx context.Context, ref string) ([]PrivateImage, error) {
	var out []PrivateImage
	return out, c.call(ctx, http.MethodGet, "/shoal/v1/images/private?ref="+url.QueryEscape(ref), nil, &out)
}

// MakePrivate lets only some nodes hold an image: names, IDs, and tag:KEY=VALUE.
func (c *Client) MakePrivate(ctx context.Context, ref string, nodes []string) (PrivateImage, error) {
	var out PrivateImage
	return out, c.call(ctx, http.MethodPut, "/shoal/v1/images/private?ref="+url.QueryEscape(ref), struct{ Nodes []string }{nodes}, &out)
}

// MakePublic lets every node hold an image again.
func (c *Client) MakePublic(ctx context.Context, ref string) error {
	return c.call(ctx, http.MethodDelete, "/shoal/v1/images/private?ref="+url.QueryEscape(ref), nil, nil)
}

// CopyImage brings an image to nodes, and to those whose containers match users, or to
// all if neither says any. The stream tells of each node, by its name as ID, until the
// line whose detail is final.
func (c *Client) CopyImage(ctx context.Context, ref string, nodes []string, users api.Filters) (api.Stream[api.Progress], error) {
	q := url.Values{"ref": {ref}, "node": nodes}
	if len(users) > 0 {
		f, err := json.Marshal(users)
		if err != nil {
			return nil, fmt.Errorf("write the filter: %w", err)
		}
		q.Set("users", string(f))
	}
	return stream[api.Progress](ctx, c, "/shoal/v1/images/copy?"+q.Encode())
}

// VerifyImages reads what the agent's own node holds of images, or all it holds if
// none are given, and mends what it can.
func (c *Client) VerifyImages(ctx context.Context, refs []string) (api.Stream[image.Checked], error) {
	return stream[image.Checked](ctx, c, "/shoal/v1/images/verify?"+url.Values{"ref": refs}.Encode())
}

// stream posts a request whose answer is a stream of JSON values.
func stream[T any](ctx context.Context, c *Client, path string) (api.Stream[T], error) {
	res, err := c.do(ctx, http.MethodPost, path, nil)
	if err != nil {
		return nil, err
	}
	return &lines[T]{body: res.Body, decoder: json.NewDecoder(res.Body)}, nil
}

// Resolve looks endpoints up, and waits for the first if told to. NotFound if
// there is none in time.
func (c *Client) Resolve(ctx context.Context, q discovery.Query, wait time.Duration) ([]discovery.Endpoint, error) {
	v := values(q)
	if wait > 0 {
		v.Set("wait", wait.String())
	}
	var out []discovery.Endpoint
	return out, c.call(ctx, http.MethodGet, "/shoal/v1/resolve?"+v.Encode(), nil, &out)
}

// Watch follows endpoints: a snapshot, then every change.
func (c *Client) Watch(ctx context.Context, q discovery.Query) (api.Stream[discovery.Change], error) {
	res, err := c.do(ctx, http.MethodGet, "/shoal/v1/watch?"+values(q).Encode(), nil)
	if err != nil {
		return nil, err
	}
	return &lines[discovery.Change]{body: res.Body, decoder: json.NewDecoder(res.Body)}, nil
}

func values(q discovery.Query) url.Values {
	v := url.Values{"tag": q.Tags}
	if q.Name != "" {
		v.Set("name", q.Name)
	}
	if q.Port != 0 {
		port := strconv.Itoa(int(q.Port))
		if q.Proto != "" {
			port += "/" + q.Proto
		}
		v.Set("port", port)
	}
	return v
}

// lines is a stream of JSON values.
type lines[T any] struct {
	body    io.ReadCloser
	decoder *json.Decoder
}

func (l *lines[T]) Recv() (v T, err error) { return v, l.decoder.Decode(&v) }
func (l *lines[T]) Close() error           { return l.body.Close() }

// call sends a request and reads the whole answer into out, if that isn't nil.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	res, err := c.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(out); err != nil {
		return fmt.Errorf("read the agent's answer: %w", err)
	}
	return nil
}

// do sends a request; an answer that isn't a success becomes an error of its class.
func (c *Client) do(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		raw, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://shoal"+path, body)
	if err != nil {
		return nil, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			return nil, api.Unavailable("no agent answers at %s (%v): is it running? `shoal agent` or `systemctl start shoal` starts it; -H names another socket", c.socket, op.Err)
		}
		return nil, err
	}
	if res.StatusCode < 300 {
		return res, nil
	}
	defer res.Body.Close()
	raw, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	var e struct{ Message string }
	if json.Unmarshal(raw, &e) != nil || e.Message == "" {
		e.Message = fmt.Sprintf("%s %s: %s", method, path, res.Status)
	}
	return nil, api.FromStatus(res.StatusCode, e.Message)
}
