package distribution

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/transfer"
)

// Blobs keeps what images are made of. Methods may be called concurrently.
type Blobs interface {
	transfer.Store
	// Begin makes room for a blob whose digest is told at its end.
	Begin() (Upload, error)
	// Fetch makes the store hold a blob that whole, a manifest or an index, is or
	// leads to. NotFound if nobody in the cluster has it.
	Fetch(ctx context.Context, want ocispec.Descriptor, whole digest.Digest) error
	// Relay is Fetch for whoever reads the blob while it comes. It ends with io.EOF
	// only once all was verified. The caller closes.
	Relay(ctx context.Context, want ocispec.Descriptor, whole digest.Digest) (io.ReadCloser, error)
	// Free removes a blob; Conflict if something needs it.
	Free(ctx context.Context, d digest.Digest) error
	// Hold keeps blobs, here or not yet, from being swept until release.
	Hold(ds ...digest.Digest) (release func())
}

// Upload takes a blob in. One goroutine at a time uses it.
type Upload interface {
	io.Writer
	Size() int64
	// Commit makes what was written the blob d. Bytes of another digest are dropped
	// (errdefs.ErrDataLoss).
	Commit(ctx context.Context, d digest.Digest) error
	// Abort drops what was written; a no-op after Commit.
	Abort() error
}

// Name is a tagged name, and the manifest or index that it means.
type Name struct {
	Name   reference.NamedTagged
	Target digest.Digest
}

// Names is what the cluster means by names. Methods may be called concurrently.
type Names interface {
	// Resolve says what a name means; NotFound if nothing.
	Resolve(ctx context.Context, n reference.NamedTagged) (digest.Digest, error)
	// List lists all names there are, in any order.
	List(ctx context.Context) ([]Name, error)
	// Put makes a name mean target, which is here with all that it leads to: parts.
	// Where target is an image of this host, the host has that image when Put returns.
	// note says what the client should know, such as why it is no image after all.
	Put(ctx context.Context, n reference.NamedTagged, target digest.Digest, parts []digest.Digest) (note string, err error)
	// Drop forgets a name, and frees what only that needed. Conflict if it is in use.
	Drop(ctx context.Context, n reference.NamedTagged) error
}

// Config describes a registry. Blobs, Names and Domain are required.
type Config struct {
	Blobs Blobs
	Names Names
	// Domain begins the names of what is pushed here: localhost:5000.
	Domain string
	// Allow, if set, says who may ask; its error is told to the one who may not.
	Allow  func(r *http.Request) error
	Logger *slog.Logger // nil discards
}

// Server is a registry. It is an http.Handler; Run must run beside it.
type Server struct {
	cfg Config
	log *slog.Logger

	referring sync.Mutex // held while a list of referrers is replaced

	mu      sync.Mutex
	uploads map[string]*session
	held    map[digest.Digest]*hold
}

// New makes a registry; it starts nothing.
func New(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{
		cfg: cfg, log: cfg.Logger.With("component", "distribution"),
		uploads: map[string]*session{}, held: map[digest.Digest]*hold{},
	}
}

// Figures of the registry.
const (
	// idle is after how long an upload that nobody goes on with is dropped.
	idle = time.Hour
	// holdFor is how long a blob stays that a client was told is here: it counts on
	// it when it sends the manifest.
	holdFor = time.Hour
	// expireEvery is how often both are looked for.
	expireEvery = time.Minute
	// maxUploads is how many uploads may be open at once; each keeps a file open.
	maxUploads = 256
	// maxManifest bounds a manifest or an index, in bytes.
	maxManifest = 4 << 20
)

// Run drops what clients have abandoned, until ctx ends; then it drops all that is
// unfinished.
func (s *Server) Run(ctx context.Context) error {
	t := time.NewTicker(expireEvery)
	defer t.Stop()
	for {
		select {
		case now := <-t.C:
			s.expire(now)
		case <-ctx.Done():
			s.expire(time.Now().Add(max(idle, holdFor) + time.Second))
			return nil
		}
	}
}

// expire ends uploads and holds that nobody has touched for too long.
func (s *Server) expire(now time.Time) {
	s.mu.Lock()
	var old []*session
	for id, u := range s.uploads {
		if now.Sub(u.touched) > idle {
			old = append(old, u)
			delete(s.uploads, id)
		}
	}
	for d, h := range s.held {
		if now.Sub(h.touched) > holdFor {
			h.release()
			delete(s.held, d)
		}
	}
	s.mu.Unlock()
	for _, u := range old {
		if err := u.abandon(); err != nil {
			s.log.Warn("an abandoned upload was not removed", "err", err)
		}
	}
}

// hold keeps a blob for a client that pushes an image in parts.
type hold struct {
	release func()
	touched time.Time
}

func (s *Server) hold(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.held[d]; h != nil {
		h.touched = time.Now()
		return
	}
	s.held[d] = &hold{s.cfg.Blobs.Hold(d), time.Now()}
}

// letGo ends a hold early, because the blob was asked to be removed.
func (s *Server) letGo(ds ...digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range ds {
		if h := s.held[d]; h != nil {
			h.release()
			delete(s.held, d)
		}
	}
}

// call is one request.
type call struct {
	s *Server
	w http.ResponseWriter
	r *http.Request
	route
	repo repository
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if err := s.serve(w, r); err != nil {
		s.fail(w, r, err)
	}
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) error {
	if s.cfg.Allow != nil {
		if err := s.cfg.Allow(r); err != nil {
			return &problem{http.StatusForbidden, codeDenied, err.Error()}
		}
	}
	to, err := parsePath(r.URL.Path)
	if err != nil {
		return err
	}
	c := &call{s: s, w: w, r: r, route: to}
	if to.kind != kindBase && to.kind != kindCatalog {
		if c.repo, err = s.repository(to.name, r.URL.Query().Get("ns")); err != nil {
			return err
		}
	}
	handle, ok := handlers[to.kind][r.Method]
	if !ok {
		return s.unsupported(w, r, to.kind)
	}
	return handle(c)
}

// handlers are what is served.
var handlers = map[kind]map[string]func(*call) error{ //nolint:gochecknoglobals // a table, never changed
	kindBase:    {"GET": (*call).base, "HEAD": (*call).base},
	kindCatalog: {"GET": (*call).catalog, "HEAD": (*call).catalog},
	kindTags:    {"GET": (*call).tags, "HEAD": (*call).tags},
	kindBlob:    {"GET": (*call).getBlob, "HEAD": (*call).getBlob},
	kindUploads: {"POST": (*call).startUpload},
	kindUpload: {
		"GET": (*call).uploadStatus, "HEAD": (*call).uploadStatus, "PATCH": (*call).patchUpload,
		"PUT": (*call).putUpload, "DELETE": (*call).cancelUpload,
	},
	kindManifest: {
		"GET": (*call).getManifest, "HEAD": (*call).getManifest,
		"PUT": (*call).putManifest, "DELETE": (*call).deleteManifest,
	},
	kindReferrers: {"GET": (*call).referrers, "HEAD": (*call).referrers},
}

func (c *call) base() error { return c.json("application/json", struct{}{}) }
