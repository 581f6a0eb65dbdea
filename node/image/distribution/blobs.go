package distribution

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// part is a blob that the cluster has: what a manifest says of it, and the manifest
// or index that leads to it.
type part struct {
	desc  ocispec.Descriptor
	whole digest.Digest
}

// getBlob answers GET and HEAD. A blob that only other nodes hold is fetched, and
// passed on while it comes.
func (c *call) getBlob() error {
	d, err := askedDigest(c.last, codeBlobUnknown)
	if err != nil {
		return err
	}
	ctx := c.r.Context()
	desc, err := c.s.cfg.Blobs.Stat(ctx, d)
	if err == nil {
		c.s.hold(d) // before it is opened, and for a push that relies on it
		return c.serveBlob(desc)
	}
	if !errdefs.IsNotFound(err) {
		return err
	}
	p, err := c.find(ctx, d)
	if err != nil {
		return err
	}
	switch {
	case p == nil:
		return fault(http.StatusNotFound, codeBlobUnknown, "the cluster has no blob %s of %s", d, c.repo.path)
	case c.r.Method == http.MethodHead:
		c.blobHeader(p.desc)
		c.w.Header().Set("Content-Length", strconv.FormatInt(p.desc.Size, 10))
		return nil
	case c.r.Header.Get("Range") != "":
		if err := c.fetch(ctx, *p); err != nil {
			return err
		}
		return c.serveBlob(p.desc)
	}
	return c.relayBlob(*p)
}

func (c *call) blobHeader(d ocispec.Descriptor) {
	h := c.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Docker-Content-Digest", d.Digest.String())
	h.Set("Etag", `"`+d.Digest.String()+`"`)
	h.Set("Cache-Control", "max-age=31536000, immutable")
}

// serveBlob answers with a blob that is here, or the ranges of it that are asked for.
func (c *call) serveBlob(d ocispec.Descriptor) error {
	b, err := c.s.cfg.Blobs.Open(c.r.Context(), d.Digest)
	if err != nil {
		return err
	}
	defer b.Close()
	c.blobHeader(d)
	http.ServeContent(c.w, c.r, "", time.Time{}, b)
	return nil
}

// fetch makes this node hold a part.
func (c *call) fetch(ctx context.Context, p part) error {
	err := c.s.cfg.Blobs.Fetch(ctx, p.desc, p.whole)
	if err != nil {
		return fmt.Errorf("fetch blob %s from the cluster: %w", p.desc.Digest, err)
	}
	c.s.hold(p.desc.Digest)
	return nil
}

// relayBlob passes a blob on while it comes. The last bytes are held back until all of
// it was verified, so that a client never gets the whole of a wrong one.
func (c *call) relayBlob(p part) error {
	c.s.hold(p.desc.Digest)
	r, err := c.s.cfg.Blobs.Relay(c.r.Context(), p.desc, p.whole)
	if err != nil {
		return fmt.Errorf("fetch blob %s from the cluster: %w", p.desc.Digest, err)
	}
	defer r.Close()
	c.blobHeader(p.desc)
	c.w.Header().Set("Content-Length", strconv.FormatInt(p.desc.Size, 10))
	err = copyHoldingBack(c.w, r)
	if err == nil {
		return nil
	}
	if c.r.Context().Err() == nil {
		c.s.log.Warn("a blob was not passed on whole", "digest", p.desc.Digest, "err", err)
	}
	panic(http.ErrAbortHandler) // the status is sent: only a cut connection tells
}

// copyHoldingBack copies and writes the last piece only when r has ended well.
func copyHoldingBack(w io.Writer, r io.Reader) error {
	now, last := make([]byte, 64<<10), make([]byte, 64<<10)
	held := 0
	for {
		n, err := r.Read(now)
		if n > 0 {
			if _, e := w.Write(last[:held]); e != nil {
				return e
			}
			now, last, held = last, now, n
		}
		if errors.Is(err, io.EOF) {
			_, e := w.Write(last[:held])
			return e
		}
		if err != nil {
			return err
		}
	}
}

// find looks for a blob that is not here in what the repository's names lead to, as
// far as those manifests are here: a client asks for them first. nil if it is not there.
func (c *call) find(ctx context.Context, d digest.Digest) (*part, error) {
	names, err := c.listed(ctx)
	if err != nil {
		return nil, err
	}
	seen := map[digest.Digest]bool{}
	for _, n := range names {
		if n.Target == d {
			return &part{ocispec.Descriptor{Digest: d}, d}, nil
		}
		if desc := c.within(ctx, n.Target, d, seen, maxDepth); desc != nil {
			return &part{*desc, n.Target}, nil
		}
	}
	return nil, nil
}

// within looks for a blob in what a manifest or index leads to.
func (c *call) within(ctx context.Context, top, d digest.Digest, seen map[digest.Digest]bool, depth int) *ocispec.Descriptor {
	if seen[top] || depth == 0 {
		return nil
	}
	seen[top] = true
	_, doc, err := c.readDocument(ctx, top)
	if err != nil {
		return nil // not here, or none
	}
	for _, desc := range doc.refs {
		if desc.Digest == d {
			return &desc
		}
	}
	if !doc.index {
		return nil
	}
	for _, desc := range doc.refs {
		if found := c.within(ctx, desc.Digest, d, seen, depth-1); found != nil {
			return found
		}
	}
	return nil
}

// readDocument reads a manifest or an index that is here.
func (c *call) readDocument(ctx context.Context, d digest.Digest) ([]byte, *document, error) {
	b, err := c.s.cfg.Blobs.Open(ctx, d)
	if err != nil {
		return nil, nil, err
	}
	defer b.Close()
	if b.Size() > maxManifest {
		return nil, nil, fault(http.StatusNotFound, codeManifestUnknown, "blob %s is no manifest", d)
	}
	var raw bytes.Buffer
	raw.Grow(int(b.Size()))
	if _, err := io.Copy(&raw, b); err != nil {
		return nil, nil, fmt.Errorf("read manifest %s: %w", d, err)
	}
	doc, err := decodeDocument(raw.Bytes())
	return raw.Bytes(), doc, err
}
