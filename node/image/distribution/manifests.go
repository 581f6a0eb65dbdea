package distribution

import (
	"bytes"
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// reference reads the last part of a manifest's path: a digest or a tag.
func (c *call) reference() (d digest.Digest, tag string, err error) {
	if strings.Contains(c.last, ":") {
		if c.r.Method == http.MethodPut {
			d, err = parseDigest(c.last)
		} else {
			d, err = askedDigest(c.last, codeManifestUnknown)
		}
		return d, "", err
	}
	return "", c.last, nil
}

// getManifest answers GET and HEAD. What only other nodes hold is fetched.
func (c *call) getManifest() error {
	d, tag, err := c.reference()
	if err != nil {
		return err
	}
	ctx := c.r.Context()
	if tag != "" {
		if d, err = c.resolve(ctx, tag); err != nil {
			return err
		}
	}
	b, doc, err := c.manifest(ctx, d)
	if err != nil {
		if errdefs.IsNotFound(err) || asProblem(err).code == codeManifestInvalid {
			return c.manifestUnknown(c.last) // a blob that is no manifest is none
		}
		return err
	}
	h := c.w.Header()
	h.Set("Content-Type", doc.mediaType)
	h.Set("Docker-Content-Digest", d.String())
	h.Set("Etag", `"`+d.String()+`"`)
	http.ServeContent(c.w, c.r, "", time.Time{}, bytes.NewReader(b))
	return nil
}

// manifest reads a manifest or an index, from other nodes if need be.
func (c *call) manifest(ctx context.Context, d digest.Digest) ([]byte, *document, error) {
	b, doc, err := c.readDocument(ctx, d)
	if !errdefs.IsNotFound(err) {
		return b, doc, err
	}
	p, err := c.find(ctx, d)
	if err != nil {
		return nil, nil, err
	}
	if p == nil { // an image without a tag here may still be known
		p = &part{ocispec.Descriptor{Digest: d}, d}
	}
	if err := c.fetch(ctx, *p); err != nil {
		return nil, nil, err
	}
	return c.readDocument(ctx, d)
}

// putManifest takes a manifest or an index in. With a tag it becomes a name of the
// cluster; without one it stays for as long as a push may take.
func (c *call) putManifest() error {
	want, tag, err := c.reference()
	if err != nil {
		return err
	}
	name, err := c.repo.tagged("latest")
	if err == nil && tag != "" {
		name, err = c.repo.tagged(tag)
	}
	if err != nil {
		return err
	}
	b, doc, err := c.readManifestBody()
	if err != nil {
		return err
	}
	d := digest.FromBytes(b)
	if want != "" && want != d {
		return fault(http.StatusBadRequest, codeDigestInvalid, "the manifest's digest is %s, not %s", d, want)
	}
	ctx := c.r.Context()
	parts, err := c.parts(ctx, doc)
	if err != nil {
		return err
	}
	if err := c.keep(ctx, d, b); err != nil {
		return err
	}
	if tag != "" {
		note, err := c.s.cfg.Names.Put(ctx, name, d, parts)
		if err != nil {
			return err
		}
		if note != "" {
			c.w.Header().Set("Warning", `299 - `+strconv.Quote(note))
		}
	}
	if doc.subject != nil {
		if err := c.refer(ctx, d, int64(len(b)), doc); err != nil {
			return err
		}
		c.w.Header().Set("OCI-Subject", doc.subject.Digest.String())
	}
	c.w.Header().Set("Location", "/v2/"+c.repo.path+"/manifests/"+d.String())
	c.w.Header().Set("Docker-Content-Digest", d.String())
	c.w.WriteHeader(http.StatusCreated)
	return nil
}

func (c *call) readManifestBody() ([]byte, *document, error) {
	b, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, maxManifest))
	if e := (*http.MaxBytesError)(nil); errors.As(err, &e) {
		return nil, nil, fault(http.StatusRequestEntityTooLarge, codeSizeInvalid, "the manifest has more than %d bytes", maxManifest)
	}
	if err != nil {
		return nil, nil, invalid("receive the manifest: %v", err)
	}
	doc, err := decodeDocument(b)
	if err != nil {
		return nil, nil, err
	}
	if text := c.r.Header.Get("Content-Type"); text != "" {
		t, _, err := mime.ParseMediaType(text)
		if err != nil || t != doc.mediaType {
			return nil, nil, invalid("the Content-Type is %q, the manifest's media type %q", clip(text), doc.mediaType)
		}
	}
	return b, doc, nil
}

// parts are all blobs that a manifest or index leads to. All of them are here when it
// returns; what the repository has on other nodes only is fetched.
func (c *call) parts(ctx context.Context, doc *document) ([]digest.Digest, error) {
	seen := map[digest.Digest]bool{}
	var out []digest.Digest
	var walk func(doc *document, depth int) error
	walk = func(doc *document, depth int) error {
		if depth == 0 {
			return invalid("indexes are nested too deeply")
		}
		for _, r := range doc.refs {
			if seen[r.Digest] || elsewhere(r) && !c.has(ctx, r.Digest) {
				continue
			}
			if seen[r.Digest] = true; len(seen) > maxParts {
				return invalid("more than %d blobs", maxParts)
			}
			if err := c.require(ctx, r); err != nil {
				return err
			}
			out = append(out, r.Digest)
			if !doc.index {
				continue
			}
			_, child, err := c.readDocument(ctx, r.Digest)
			if err != nil {
				return err
			}
			if err := walk(child, depth-1); err != nil {
				return err
			}
		}
		return nil
	}
	return out, walk(doc, maxDepth)
}

// maxParts bounds the blobs that one name keeps.
const maxParts = 100_000

func (c *call) has(ctx context.Context, d digest.Digest) bool {
	_, err := c.s.cfg.Blobs.Stat(ctx, d)
	return err == nil
}

// require makes sure that a blob is here and as large as it is said to be.
func (c *call) require(ctx context.Context, want ocispec.Descriptor) error {
	c.s.hold(want.Digest)
	got, err := c.s.cfg.Blobs.Stat(ctx, want.Digest)
	if errdefs.IsNotFound(err) {
		var p *part
		if p, err = c.find(ctx, want.Digest); err != nil {
			return err
		}
		if p == nil {
			return fault(http.StatusNotFound, codeManifestBlobUnknown, "blob %s is not here", want.Digest)
		}
		if err := c.fetch(ctx, *p); err != nil {
			return err
		}
		got, err = c.s.cfg.Blobs.Stat(ctx, want.Digest)
	}
	if err == nil && got.Size != want.Size {
		return invalid("blob %s has %d bytes, not %d", want.Digest, got.Size, want.Size)
	}
	return err
}

// keep makes a manifest a blob.
func (c *call) keep(ctx context.Context, d digest.Digest, b []byte) error {
	c.s.hold(d)
	if c.has(ctx, d) {
		return nil
	}
	u, err := c.s.cfg.Blobs.Begin()
	if err != nil {
		return err
	}
	if _, err := u.Write(b); err != nil {
		return errors.Join(err, u.Abort())
	}
	return u.Commit(ctx, d)
}

// deleteManifest forgets a tag, or a digest with all tags of the repository that mean
// it. Only what is named after this registry can be deleted through it.
func (c *call) deleteManifest() error {
	d, tag, err := c.reference()
	if err != nil {
		return err
	}
	if _, err := c.repo.tagged("latest"); err != nil {
		return err
	}
	ctx := c.r.Context()
	if tag != "" {
		if d, err = c.resolve(ctx, tag); err != nil {
			return err
		}
	}
	own, others, err := c.namesOf(ctx, d, tag)
	if err != nil {
		return err
	}
	if len(own) == 0 && others {
		return fault(http.StatusMethodNotAllowed, codeUnsupported, "%s is an image of the cluster that was not pushed here: docker rmi removes it", c.repo.path)
	}
	_, doc, err := c.readDocument(ctx, d)
	if err != nil && len(own) == 0 {
		return c.manifestUnknown(c.last)
	}
	c.letGoOf(d, doc)
	for _, n := range own {
		if err := c.s.cfg.Names.Drop(ctx, n.Name); err != nil {
			return err
		}
	}
	if tag == "" {
		if err := c.free(ctx, d, doc, len(own) > 0); err != nil {
			return err
		}
	}
	c.w.WriteHeader(http.StatusAccepted)
	return nil
}

// namesOf are the names of this registry for a digest, with the tag if it isn't empty,
// and whether there are names in the repository that are not this registry's.
func (c *call) namesOf(ctx context.Context, d digest.Digest, tag string) (own []Name, others bool, err error) {
	names, err := c.listed(ctx)
	if err != nil {
		return nil, false, err
	}
	for _, n := range names {
		switch {
		case n.Target != d || tag != "" && n.Name.Tag() != tag:
		case n.Name.Name() == c.repo.own.Name():
			own = append(own, n)
		default:
			others = true
		}
	}
	return own, others, nil
}

// free takes a manifest away that no tag of the repository means any more. It may
// stay if others need it, unless it had no tag either.
func (c *call) free(ctx context.Context, d digest.Digest, doc *document, tagged bool) error {
	if doc != nil && doc.subject != nil {
		if err := c.unrefer(ctx, d, doc.subject.Digest); err != nil {
			return err
		}
	}
	err := c.s.cfg.Blobs.Free(ctx, d)
	if errdefs.IsConflict(err) {
		if tagged {
			return nil
		}
		return fault(http.StatusMethodNotAllowed, codeUnsupported, "%v", err)
	}
	return err
}

// letGoOf ends the holds on a manifest and what it leads to.
func (c *call) letGoOf(d digest.Digest, doc *document) {
	c.s.letGo(d)
	if doc == nil {
		return
	}
	for _, r := range doc.refs {
		c.s.letGo(r.Digest)
	}
}
