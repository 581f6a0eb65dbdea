package registry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/transfer"
)

// Pushed says how a blob came to be in a repository.
type Pushed struct {
	Exists bool   // it was there
	From   string // the repository it was mounted from
}

// Push says that the repository will be pushed to, and from which others of the
// registry blobs may be mounted. It asks nothing.
func (r *Repository) Push(mounts ...string) {
	scopes := []string{"repository:" + r.path + ":pull,push"}
	for _, m := range mounts {
		scopes = append(scopes, "repository:"+m+":pull")
	}
	r.own.want(scopes...)
}

// PutBlob makes the registry hold a blob: it is there, or mounted from one of the
// repositories named, or uploaded. An upload that breaks off goes on where it stopped.
func (r *Repository) PutBlob(ctx context.Context, d ocispec.Descriptor, blob transfer.Blob, mounts []string, progress func(int64)) (Pushed, error) {
	has, err := r.has(ctx, "/blobs/"+d.Digest.String(), d.Digest)
	if err != nil || has {
		return Pushed{Exists: has}, err
	}
	u := &upload{r: r, d: d, blob: blob, progress: progress}
	for _, from := range mounts {
		mounted, err := u.begin(ctx, url.Values{"mount": {d.Digest.String()}, "from": {from}})
		switch {
		case err == nil && mounted:
			return Pushed{From: from}, nil
		case err == nil:
			return Pushed{}, u.run(ctx) // the registry would rather have it sent
		case ctx.Err() != nil:
			return Pushed{}, err
		}
		r.c.log.Info("a blob can't be mounted", "blob", d.Digest.String(), "from", from, "error", err)
	}
	return Pushed{}, u.run(ctx)
}

// has asks whether something is there.
func (r *Repository) has(ctx context.Context, what string, d digest.Digest) (bool, error) {
	res, err := r.own.do(ctx, call{method: http.MethodHead, path: "/v2/" + r.path + what, header: http.Header{"Accept": manifestTypes()}})
	if err != nil {
		return false, err
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK:
		return true, nil
	case http.StatusNotFound:
		return false, nil
	}
	return false, fmt.Errorf("ask for %s: %w", d, refusal(res))
}

// upload is one blob on its way.
type upload struct {
	r        *Repository
	d        ocispec.Descriptor
	blob     transfer.Blob
	at       int64    // bytes the registry has
	where    *url.URL // nil: not begun
	progress func(int64)
}

// begin begins an upload, or mounts the blob.
func (u *upload) begin(ctx context.Context, q url.Values) (mounted bool, err error) {
	path := "/v2/" + u.r.path + "/blobs/uploads/"
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	res, err := u.r.own.do(ctx, call{method: http.MethodPost, path: path, body: empty})
	if err != nil {
		return false, err
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusCreated:
		return len(q) > 0, nil
	case http.StatusAccepted:
		u.at = 0
		return false, u.moved(res)
	}
	return false, refusal(res)
}

func empty() io.Reader { return bytes.NewReader(nil) }

// moved notes where the upload goes on.
func (u *upload) moved(res *http.Response) error {
	next, err := res.Location()
	if err != nil {
		return api.Errorf(errdefs.ErrInternal, "registry %s: says not where to upload to: %w", u.r.own.host, err)
	}
	own := res.Request.URL
	if next.User != nil || next.Scheme != own.Scheme && next.Scheme != "https" || next.Scheme == "http" && !u.r.c.lax(next.Host) {
		return api.Errorf(errdefs.ErrInternal, "registry %s: wants the upload at %s, which is not safe", u.r.own.host, next.Host)
	}
	u.where = next
	return nil
}

// run uploads, over connections that break.
func (u *upload) run(ctx context.Context) error {
	for tries := 1; ; tries++ {
		before := u.at
		err := u.send(ctx)
		if err == nil || ctx.Err() != nil || !mayPass(nil, err) {
			return err
		}
		if tries == maxTries {
			return unreachable(err)
		}
		u.r.c.log.Info("an upload broke off and goes on", "blob", u.d.Digest.String(), "host", u.r.own.host, "error", err)
		if err := sleep(ctx, u.r.c.pause(tries)); err != nil {
			return err
		}
		u.status(ctx)
		if u.at > before {
			tries = 1
		}
	}
}

// status asks how far a broken upload is; if that can't be told it begins anew.
func (u *upload) status(ctx context.Context) {
	if u.where == nil {
		return
	}
	where := u.where
	u.where = nil
	res, err := u.r.own.do(ctx, call{method: http.MethodGet, url: where})
	if err != nil {
		return
	}
	defer res.Body.Close()
	n, ok := received(res.Header.Get("Range"))
	if res.StatusCode != http.StatusNoContent || !ok || n == 0 || n > u.d.Size {
		return
	}
	if res.Header.Get("Location") == "" {
		u.where = where
	} else if u.moved(res) != nil {
		return
	}
	u.at = n
}

// send sends what is missing. A whole blob goes with the request that ends the
// upload, the rest of one in a piece before it.
func (u *upload) send(ctx context.Context) error {
	if u.where == nil {
		if _, err := u.begin(ctx, nil); err != nil {
			return lasting{err}
		}
	}
	if u.at > 0 && u.at < u.d.Size {
		if err := u.patch(ctx); err != nil {
			return err
		}
	}
	end := *u.where
	q := end.Query()
	q.Set("digest", u.d.Digest.String())
	end.RawQuery = q.Encode()
	c := call{method: http.MethodPut, url: &end, header: octets(), body: u.rest, size: u.d.Size - u.at, once: true}
	res, err := u.r.own.do(ctx, c)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusCreated {
		return u.refused(res)
	}
	u.progress(u.d.Size)
	return nil
}

func octets() http.Header { return http.Header{"Content-Type": {"application/octet-stream"}} }

func (u *upload) patch(ctx context.Context) error {
	h := octets()
	h.Set("Content-Range", fmt.Sprintf("%d-%d", u.at, u.d.Size-1))
	res, err := u.r.own.do(ctx, call{method: http.MethodPatch, url: u.where, header: h, body: u.rest, size: u.d.Size - u.at, once: true})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusAccepted && res.StatusCode != http.StatusNoContent {
		return u.refused(res)
	}
	u.at = u.d.Size
	return u.moved(res)
}

// refused is an answer that ends an attempt; whether for good depends on it.
func (u *upload) refused(res *http.Response) error {
	err := fmt.Errorf("upload blob %s: %w", u.d.Digest, refusal(res))
	switch {
	case res.StatusCode == http.StatusNotFound || res.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		u.where = nil // the registry has forgotten it; the next attempt begins anew
		return api.Unavailable("%v", err)
	case mayPass(res, nil):
		return api.Unavailable("%v", err)
	}
	return lasting{err}
}

// rest reads what the registry lacks.
func (u *upload) rest() io.Reader {
	return &counted{io.NewSectionReader(u.blob, u.at, u.d.Size-u.at), u.at, u.progress}
}

type counted struct {
	io.Reader
	n        int64
	progress func(int64)
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.n += int64(n)
	if n > 0 {
		c.progress(c.n)
	}
	return n, err
}

// PutManifest makes the registry hold a manifest or index under a tag or its digest.
// What it refers to must be there.
func (r *Repository) PutManifest(ctx context.Context, mediaType string, body []byte, ref string) error {
	d := digest.FromBytes(body)
	res, err := r.own.do(ctx, call{
		method: http.MethodPut, path: "/v2/" + r.path + "/manifests/" + ref, header: http.Header{"Content-Type": {mediaType}},
		body: func() io.Reader { return bytes.NewReader(body) }, size: int64(len(body)),
	})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusCreated && res.StatusCode != http.StatusOK && res.StatusCode != http.StatusAccepted {
		return fmt.Errorf("push manifest %s: %w", ref, refusal(res))
	}
	if got := res.Header.Get("Docker-Content-Digest"); got != "" && got != d.String() {
		return api.Errorf(errdefs.ErrDataLoss, "push manifest %s: %s says it got %s, not %s", ref, r.own.host, printable(got), d)
	}
	return nil
}
