package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/transfer"
)

var _ transfer.Fetcher = (*Repository)(nil)

// Docker's media types of before there were OCI's.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// manifestTypes are kept apart from blobs by registries, and are what is accepted.
func manifestTypes() []string {
	return []string{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, dockerList, dockerManifest}
}

func isManifest(mediaType string) bool { return slices.Contains(manifestTypes(), mediaType) }

// How large what is read into memory may be.
const (
	maxManifest = 4 << 20
	maxConfig   = 8 << 20
)

// Resolve says what a tag means at the registry now, or at the first mirror that
// knows it. Errors are Docker's: NotFound for what isn't there or for others only,
// Unavailable if nobody answers.
func (r *Repository) Resolve(ctx context.Context, tag string) (ocispec.Descriptor, error) {
	var last error
	for _, s := range r.sources() {
		d, err := r.resolve(ctx, s, tag)
		if err == nil {
			return d, nil
		}
		if ctx.Err() != nil {
			return d, context.Cause(ctx)
		}
		if s.mirror {
			r.c.log.Warn("mirror passed over", "mirror", s.host, "repository", r.path, "error", err)
		}
		last = err
	}
	return ocispec.Descriptor{}, r.explain(tag, last)
}

// explain puts a refusal in Docker's words.
func (r *Repository) explain(tag string, err error) error {
	var e *Error
	familiar := reference.FamiliarName(r.name)
	refused := errors.As(err, &e)
	switch {
	case errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err), refused && (e.Code == "NAME_UNKNOWN" || e.Code == "DENIED" || e.Code == "UNAUTHORIZED"):
		return api.NotFound("pull access denied for %s, repository does not exist or may require 'docker login': %v", familiar, err)
	case refused && e.Status == http.StatusNotFound:
		sep := ":"
		if _, bad := digest.Parse(tag); bad == nil {
			sep = "@"
		}
		if e.Code == "" {
			e = &Error{Status: e.Status, Code: "MANIFEST_UNKNOWN", Message: "manifest unknown"}
		}
		return api.NotFound("manifest for %s%s%s not found: %v", familiar, sep, tag, e)
	}
	return err
}

func (r *Repository) resolve(ctx context.Context, s *session, tag string) (ocispec.Descriptor, error) {
	var d ocispec.Descriptor
	c := call{method: http.MethodHead, path: "/v2/" + r.path + "/manifests/" + tag, header: http.Header{"Accept": manifestTypes()}}
	res, err := s.do(ctx, c)
	if err != nil {
		return d, err
	}
	_ = res.Body.Close() // of a HEAD
	d.MediaType, d.Size, d.Digest = res.Header.Get("Content-Type"), res.ContentLength, digest.Digest(res.Header.Get("Docker-Content-Digest"))
	if res.StatusCode == http.StatusOK && d.Digest.Validate() == nil && d.Size > 0 && d.Size <= maxManifest {
		return d, nil
	}
	// It can't be said without a body, or the body says why not.
	c.method = http.MethodGet
	if res, err = s.do(ctx, c); err != nil {
		return d, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return d, refusal(res)
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, maxManifest+1))
	if err != nil {
		return d, api.Unavailable("read manifest %s: %w", tag, err)
	}
	if len(b) > maxManifest {
		return d, api.InvalidArgument("manifest %s: larger than %d bytes", tag, maxManifest)
	}
	return ocispec.Descriptor{MediaType: res.Header.Get("Content-Type"), Digest: digest.FromBytes(b), Size: int64(len(b))}, nil
}

// Manifest fetches a manifest or index by its digest.
func (r *Repository) Manifest(ctx context.Context, d digest.Digest) ([]byte, error) {
	var last error
	for _, s := range r.sources() {
		b, err := r.manifest(ctx, s, d)
		if err == nil {
			return b, nil
		}
		last = err
	}
	return nil, r.explain(d.String(), last)
}

func (r *Repository) manifest(ctx context.Context, s *session, d digest.Digest) ([]byte, error) {
	return r.document(ctx, s, "/manifests/", d, maxManifest)
}

// Config fetches an image's config.
func (r *Repository) Config(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	var last error
	for _, s := range r.sources() {
		b, err := r.document(ctx, s, "/blobs/", d.Digest, maxConfig)
		if err == nil {
			return b, nil
		}
		last = err
	}
	return nil, last
}

// document fetches something small into memory.
func (r *Repository) document(ctx context.Context, s *session, kind string, d digest.Digest, limit int64) ([]byte, error) {
	if err := d.Validate(); err != nil {
		return nil, api.InvalidArgument("fetch %q: %w", d, err)
	}
	res, err := s.do(ctx, call{
		method: http.MethodGet, path: "/v2/" + r.path + kind + d.String(), header: http.Header{"Accept": append(manifestTypes(), "*/*")},
	})
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, refusal(res)
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, limit+1))
	if err != nil {
		return nil, api.Unavailable("read %s: %w", d, err)
	}
	if int64(len(b)) > limit || d.Algorithm().FromBytes(b) != d {
		return nil, api.Errorf(errdefs.ErrDataLoss, "%s from %s: what came is another", d, s.host)
	}
	return b, nil
}

// Fetch implements transfer.Fetcher: from the mirrors, else from the registry. What an
// earlier attempt left is gone on with.
func (r *Repository) Fetch(ctx context.Context, dst transfer.Store, want ocispec.Descriptor, progress func(int64)) error {
	if err := want.Digest.Validate(); err != nil {
		return api.InvalidArgument("fetch blob: %w", err)
	}
	if progress == nil {
		progress = func(int64) {}
	}
	var last error
	for _, s := range r.sources() {
		err := r.fetch(ctx, s, dst, want, progress)
		if err == nil || errdefs.IsAlreadyExists(err) {
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		if s.mirror {
			r.c.log.Warn("mirror passed over", "mirror", s.host, "blob", want.Digest.String(), "error", err)
		}
		last = err
	}
	if isManifest(want.MediaType) {
		return r.explain(want.Digest.String(), last)
	}
	return last
}

func (r *Repository) fetch(ctx context.Context, s *session, dst transfer.Store, want ocispec.Descriptor, progress func(int64)) error {
	for again := false; ; again = true {
		resumed, err := r.fetchOnce(ctx, s, dst, want, progress)
		if !errdefs.IsDataLoss(err) || !resumed || again {
			return err
		}
		// What was there before may have been wrong: once more, from the beginning.
	}
}

func (r *Repository) fetchOnce(ctx context.Context, s *session, dst transfer.Store, want ocispec.Descriptor, progress func(int64)) (resumed bool, err error) {
	w, err := dst.Ingest(ctx, want)
	if err != nil {
		return false, err
	}
	defer w.Close()
	d := &download{r: r, s: s, w: w, want: want, progress: progress}
	if want.Size > 0 { // else nobody knows what there is to go on with
		d.at = w.Offset()
	}
	resumed = w.Offset() > 0
	if err := d.run(ctx); err != nil {
		if errdefs.IsDataLoss(err) {
			err = errors.Join(err, w.Abort())
		}
		return resumed, err
	}
	if err := w.Commit(ctx); err != nil {
		return resumed, fmt.Errorf("from %s: %w", s.host, err)
	}
	return resumed, nil
}

// download is one blob on its way from one host.
type download struct {
	r        *Repository
	s        *session
	w        transfer.Writer
	want     ocispec.Descriptor
	at       int64 // bytes so far
	progress func(int64)
}

// run goes on until there is everything, over connections that break.
func (d *download) run(ctx context.Context) error {
	if d.want.Size > 0 && d.at >= d.want.Size {
		return nil
	}
	for tries := 1; ; tries++ {
		before := d.at
		err := d.some(ctx)
		if err == nil || ctx.Err() != nil || !mayPass(nil, err) {
			return err
		}
		if d.want.Size == 0 {
			d.at = 0
		}
		if d.at > before {
			tries = 1
		}
		if tries == maxTries {
			return unreachable(fmt.Errorf("blob %s from %s: %w", d.want.Digest, d.s.host, err))
		}
		d.r.c.log.Info("a download broke off and goes on", "blob", d.want.Digest.String(), "host", d.s.host, "at", d.at, "error", err)
		if err := sleep(ctx, d.r.c.pause(tries)); err != nil {
			return err
		}
	}
}

// some asks for what is missing and takes what comes.
func (d *download) some(ctx context.Context) error {
	c := call{method: http.MethodGet, path: "/v2/" + d.r.path + "/blobs/" + d.want.Digest.String(), header: http.Header{}}
	if isManifest(d.want.MediaType) {
		c.path = "/v2/" + d.r.path + "/manifests/" + d.want.Digest.String()
		c.header["Accept"] = manifestTypes()
	}
	if d.at > 0 {
		c.header.Set("Range", fmt.Sprintf("bytes=%d-", d.at))
	}
	res, err := d.s.do(ctx, c)
	if err != nil {
		return lasting{err} // do was patient already
	}
	defer res.Body.Close()
	if err := d.place(res); err != nil {
		return err
	}
	_, err = io.Copy(at{d}, res.Body)
	switch {
	case err != nil:
		return err
	case d.want.Size > 0 && d.at < d.want.Size:
		return io.ErrUnexpectedEOF
	}
	return nil
}

// place sees what part of the blob an answer has and makes it begin where the last one
// ended.
func (d *download) place(res *http.Response) error {
	switch res.StatusCode {
	case http.StatusOK: // all of it, asked for or not
		if n := res.ContentLength; n >= 0 && d.want.Size > 0 && n != d.want.Size {
			return d.wrong("has %d bytes, not %d", n, d.want.Size)
		}
		if _, err := io.CopyN(io.Discard, res.Body, d.at); err != nil {
			return fmt.Errorf("skip what is here: %w", err)
		}
		return nil
	case http.StatusPartialContent:
		first, _, total, ok := contentRange(res.Header.Get("Content-Range"))
		if !ok || first != d.at || total >= 0 && total != d.want.Size {
			return d.wrong("was asked for from byte %d and answered with range %q", d.at, printable(res.Header.Get("Content-Range")))
		}
		return nil
	case http.StatusRequestedRangeNotSatisfiable:
		return d.wrong("ends before byte %d", d.at)
	}
	return lasting{fmt.Errorf("blob %s from %s: %w", d.want.Digest, d.s.host, refusal(res))}
}

// wrong is an answer that can't be of the blob.
func (d *download) wrong(format string, a ...any) error {
	return api.Errorf(errdefs.ErrDataLoss, "blob %s from %s: %s", d.want.Digest, d.s.host, fmt.Sprintf(format, a...))
}

// at writes where a download is.
type at struct{ d *download }

func (a at) Write(b []byte) (int, error) {
	d := a.d
	limit := d.want.Size
	if limit == 0 {
		limit = maxManifest
	}
	if d.at+int64(len(b)) > limit {
		return 0, d.wrong("has more than %d bytes", limit)
	}
	n, err := d.w.WriteAt(b, d.at)
	d.at += int64(n)
	d.progress(d.at)
	if err != nil {
		err = lasting{err} // a disk's, not the network's
	}
	return n, err
}
