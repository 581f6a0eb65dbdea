package distribution

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// session is an upload under way.
type session struct {
	id, repo string
	turn     chan struct{} // holds a token while nobody uses what follows
	upload   Upload
	ended    bool
	touched  time.Time // guarded by Server.mu
}

// take waits for the session's turn; give gives it back.
func (u *session) take(ctx context.Context) error {
	select {
	case <-u.turn:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if u.ended {
		u.give()
		return uploadUnknown(u.id)
	}
	return nil
}

func (u *session) give() { u.turn <- struct{}{} }

// abandon drops an upload that is in no table any more; whoever writes to it goes first.
func (u *session) abandon() error {
	if u.take(context.Background()) != nil {
		return nil // ended already
	}
	defer u.give()
	u.ended = true
	return u.upload.Abort()
}

func uploadUnknown(id string) error {
	return fault(http.StatusNotFound, codeUploadUnknown, "there is no upload %s here", clip(id))
}

// begin makes a session.
func (s *Server) begin(repo string) (*session, error) {
	u := &session{id: rand.Text(), repo: repo, turn: make(chan struct{}, 1), touched: time.Now()}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.uploads) >= maxUploads {
		return nil, fault(http.StatusTooManyRequests, codeTooMany, "%d uploads are open already", maxUploads)
	}
	var err error
	if u.upload, err = s.cfg.Blobs.Begin(); err != nil {
		return nil, err
	}
	u.give()
	s.uploads[u.id] = u
	return u, nil
}

// forget takes a session out of the table.
func (s *Server) forget(u *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.uploads, u.id)
}

// session finds the upload of the path and takes its turn; the caller gives it back.
func (c *call) session() (*session, error) {
	c.s.mu.Lock()
	u := c.s.uploads[c.last]
	if u != nil {
		u.touched = time.Now()
	}
	c.s.mu.Unlock()
	if u == nil || u.repo != c.repo.path {
		return nil, uploadUnknown(c.last)
	}
	return u, u.take(c.r.Context())
}

// done gives the turn back; what takes long counts from its end.
func (c *call) done(u *session) {
	c.s.mu.Lock()
	u.touched = time.Now()
	c.s.mu.Unlock()
	u.give()
}

// startUpload answers POST: a mount, a whole blob, or the beginning of one.
func (c *call) startUpload() error {
	if _, err := c.repo.tagged("latest"); err != nil {
		return err
	}
	q := c.r.URL.Query()
	if m := q.Get("mount"); m != "" {
		if mounted, err := c.mount(m); mounted || err != nil {
			return err
		}
	}
	u, err := c.s.begin(c.repo.path)
	if err != nil {
		return err
	}
	if !q.Has("digest") {
		c.uploadHeader(u, 0)
		c.w.WriteHeader(http.StatusAccepted)
		return nil
	}
	if err := u.take(c.r.Context()); err != nil {
		return err
	}
	err = c.receive(u)
	if err == nil {
		err = c.commit(u, q.Get("digest"))
	}
	c.done(u)
	if err != nil { // nobody knows of it
		c.s.forget(u)
		if e := u.abandon(); e != nil {
			c.s.log.Warn("a failed upload was not removed", "err", e)
		}
	}
	return err
}

// mount answers with a blob that is here already: what is here is in every repository.
func (c *call) mount(text string) (bool, error) {
	d, err := parseDigest(text)
	if err != nil {
		return false, err
	}
	c.s.hold(d)
	if _, err := c.s.cfg.Blobs.Stat(c.r.Context(), d); err != nil {
		if errdefs.IsNotFound(err) {
			return false, nil
		}
		return false, err
	}
	c.created(d)
	return true, nil
}

// created answers that a blob is here.
func (c *call) created(d digest.Digest) {
	c.w.Header().Set("Location", "/v2/"+c.repo.path+"/blobs/"+d.String())
	c.w.Header().Set("Docker-Content-Digest", d.String())
	c.w.WriteHeader(http.StatusCreated)
}

// uploadHeader says where an upload goes on, and how much of it is there.
func (c *call) uploadHeader(u *session, size int64) {
	h := c.w.Header()
	h.Set("Location", "/v2/"+c.repo.path+"/blobs/uploads/"+u.id)
	h.Set("Docker-Upload-UUID", u.id)
	h.Set("Range", fmt.Sprintf("0-%d", max(size-1, 0)))
}

func (c *call) uploadStatus() error {
	u, err := c.session()
	if err != nil {
		return err
	}
	size := u.upload.Size()
	c.done(u)
	c.uploadHeader(u, size)
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

func (c *call) patchUpload() error {
	u, err := c.session()
	if err != nil {
		return err
	}
	defer c.done(u)
	if err := c.receive(u); err != nil {
		return err
	}
	c.uploadHeader(u, u.upload.Size())
	c.w.WriteHeader(http.StatusAccepted)
	return nil
}

// putUpload ends an upload, perhaps with its last bytes.
func (c *call) putUpload() error {
	u, err := c.session()
	if err != nil {
		return err
	}
	defer c.done(u)
	want := c.r.URL.Query().Get("digest")
	if _, err := parseDigest(want); err != nil {
		return err // before a long body
	}
	if err := c.receive(u); err != nil {
		return err
	}
	return c.commit(u, want)
}

func (c *call) cancelUpload() error {
	u, err := c.session()
	if err != nil {
		return err
	}
	defer c.done(u)
	c.s.forget(u)
	u.ended = true
	if err := u.upload.Abort(); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

// receive appends the body. What came before it broke off stays, and uploadStatus
// tells how much that is.
func (c *call) receive(u *session) error {
	var body io.Reader = c.r.Body
	want := c.r.ContentLength // -1 is any
	if text := c.r.Header.Get("Content-Range"); text != "" {
		first, last, err := parseRange(text)
		if err != nil {
			return err
		}
		if size := u.upload.Size(); first != size {
			c.uploadHeader(u, size)
			return fault(http.StatusRequestedRangeNotSatisfiable, codeUploadInvalid, "the upload goes on at byte %d, not at %d", size, first)
		}
		n := last - first + 1
		if want >= 0 && want != n {
			return fault(http.StatusBadRequest, codeSizeInvalid, "the Content-Range is of %d bytes, the Content-Length %d", n, want)
		}
		want, body = n, io.LimitReader(body, n)
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{u.upload}, body, make([]byte, 256<<10))
	if err != nil {
		return fmt.Errorf("receive a blob: after %d bytes: %w", n, err)
	}
	if want >= 0 && n != want {
		return fault(http.StatusBadRequest, codeSizeInvalid, "%d of %d bytes came", n, want)
	}
	return nil
}

// commit makes what was received a blob and ends the session; wrong bytes end it, too.
func (c *call) commit(u *session, text string) error {
	d, err := parseDigest(text)
	if err != nil {
		return err
	}
	c.s.hold(d)
	c.s.forget(u)
	u.ended = true
	if err := u.upload.Commit(c.r.Context(), d); err != nil {
		c.s.letGo(d)
		if errdefs.IsDataLoss(err) {
			return fault(http.StatusBadRequest, codeDigestInvalid, "%v", err)
		}
		return err
	}
	c.created(d)
	return nil
}
