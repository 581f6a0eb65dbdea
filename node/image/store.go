package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/image/registry"
	"github.com/shoal-engine/shoal/transfer"
)

// Config says where a store lies and where it gets what it lacks.
type Config struct {
	Root string // an absolute directory of the store's own; made if need be
	// Fetchers are asked in turn for blobs; NotFound moves on to the next.
	Fetchers []transfer.Fetcher
	// Resolve says which manifest a name (normalized, with its tag) means; NotFound
	// if nobody knows it. It may be nil.
	Resolve func(ctx context.Context, ref string) (digest string, err error)
	// Allow says, by a nil error, that this host may hold the image of a manifest or an
	// index; nothing of others is fetched from anywhere. nil allows all.
	Allow func(ctx context.Context, image digest.Digest) error
	// Registry is asked what a tag means now, and for blobs after all Fetchers; nil
	// for none.
	Registry *registry.Client
	// Through makes a registry one that the nodes of a cluster ask in turns; nil lets
	// each node ask by itself.
	Through  func(registry transfer.Fetcher) transfer.Fetcher
	Platform api.Platform // zero is this host's
	Limits   Limits
	Logger   *slog.Logger // nil discards
	// Workers is how many layers are unpacked at once; 0 is one a processor.
	Workers int
	// Copy makes every container's root file system a copy, as where there is no
	// overlayfs.
	Copy bool
	// Early lets containers start before their images are here; nil: they wait.
	Early *Early
	// Directories makes layers directories, as where the kernel can't mount an EROFS
	// image from a file. Layers that are images already stay so.
	Directories bool
	// Keep is how long what no image refers to is kept for a transfer to go on
	// with; 0 is a day.
	Keep time.Duration
}

// Store keeps images. All methods may be called concurrently.
type Store struct {
	cfg     Config
	log     *slog.Logger
	overlay bool // containers are overlay mounts; else copies
	// mountable says that layers can be image files.
	mountable bool
	// tars says that such an image can refer to a tar for what files contain.
	tars    bool
	mounts  *mounts
	room    room
	boot    string
	workers chan struct{} // holds one token for each layer that is being unpacked

	ingests ingests
	fetches flights[digest.Digest] // by blob
	unpacks flights[digest.Digest] // by chain ID
	watched watchers               // who wants to know how far a blob is
	jobs    *jobs                  // streams that are being fed
	wake    chan struct{}          // has a token when there is something for Run to do

	notify   sync.Mutex // held while handlers run
	handlers []func(action, id, name string)
	troubled []func(container string, reason error, stop bool)

	mu     sync.Mutex
	images map[digest.Digest]*entry      // by ID
	names  map[string]nameRecord         // by normalized name
	kept   map[string]Kept               // by normalized name
	layers map[digest.Digest]layerRecord // by chain ID
	boxes  map[string]containerRecord    // by container ID
	leased map[digest.Digest]int         // blobs and chain IDs that jobs need

	incoming    map[digest.Digest]*incoming  // by target
	earlyLayers map[digest.Digest]*earlyBlob // by chain ID: what can be read though it isn't in layers
}

// dirs are what Open makes below the root.
var dirs = []string{"blobs/sha256", "ingest", "records/images", "records/names", "records/kept", "records/arriving", "layers", "early", "containers", "staging", "trash"}

// Open opens the store below c.Root, or makes one. What an earlier process left
// half-made is put away; records that are damaged are set aside and logged.
func Open(c Config) (*Store, error) {
	if !filepath.IsAbs(c.Root) {
		return nil, api.InvalidArgument("image store: root %q is not an absolute path", c.Root)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Workers <= 0 {
		c.Workers = runtime.GOMAXPROCS(0)
	}
	if c.Keep == 0 {
		c.Keep = 24 * time.Hour
	}
	c.Limits = c.Limits.withDefaults()
	c.Platform = platform(c.Platform, api.Platform{})
	s := &Store{
		cfg: c, log: c.Logger.With("component", "images"), boot: bootID(),
		workers: make(chan struct{}, c.Workers),
		ingests: ingests{m: map[digest.Digest]*partial{}, early: map[digest.Digest]*earlyBlob{}},
		mounts:  newMounts(),
		jobs:    newJobs(), wake: make(chan struct{}, 1),
		images: map[digest.Digest]*entry{}, names: map[string]nameRecord{}, kept: map[string]Kept{},
		layers: map[digest.Digest]layerRecord{}, boxes: map[string]containerRecord{},
		leased: map[digest.Digest]int{}, incoming: map[digest.Digest]*incoming{}, earlyLayers: map[digest.Digest]*earlyBlob{},
	}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("open image store %s: %w", c.Root, err)
	}
	return s, nil
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.cfg.Root}, elem...)...)
}

// load reads what is on disk.
func (s *Store) load() error {
	for _, d := range dirs {
		if err := os.MkdirAll(s.path(d), 0o711); err != nil {
			return err
		}
	}
	if err := s.putAway(); err != nil {
		return fmt.Errorf("put away what is half-made: %w", err)
	}
	if err := s.probe(); err != nil {
		return err
	}
	if err := s.makeInit(); err != nil {
		return fmt.Errorf("make the lowest layer: %w", err)
	}
	for _, step := range []struct {
		what string
		f    func() error
	}{{"layers", s.loadLayers}, {"images", s.loadImages}, {"names", s.loadNames}, {"kept names", s.loadKept}, {"containers", s.loadContainers}, {"what was arriving", s.adoptEarly}} {
		if err := step.f(); err != nil {
			return fmt.Errorf("load %s: %w", step.what, err)
		}
	}
	s.adoptMounts()
	return nil
}

// putAway moves what was being made to the trash and removes bytes of unknown digest.
func (s *Store) putAway() error {
	staged, err := os.ReadDir(s.path("staging"))
	if err != nil {
		return err
	}
	for _, e := range staged {
		if err := s.trash(s.path("staging", e.Name())); err != nil {
			return err
		}
	}
	arriving, err := os.ReadDir(s.path("ingest"))
	if err != nil {
		return err
	}
	for _, e := range arriving {
		if strings.HasPrefix(e.Name(), spoolPrefix) {
			if err := os.Remove(s.path("ingest", e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// trash moves a tree out of the way, at once whatever its size. Run, or emptyTrash,
// removes it.
func (s *Store) trash(path string) error {
	dir, err := os.MkdirTemp(s.path("trash"), "")
	if err != nil {
		return err
	}
	if err := os.Rename(path, filepath.Join(dir, "t")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (s *Store) emptyTrash() error {
	entries, err := os.ReadDir(s.path("trash"))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(s.path("trash", e.Name())))
	}
	return errors.Join(errs...)
}

// Close ends the streams that are being fed and waits for them. What containers have
// mounted stays.
func (s *Store) Close() error {
	s.jobs.close()
	return s.unmountIdle(time.Now())
}

// OnChange registers a function to be told of changes; see node.Images. It must not
// change the store itself.
func (s *Store) OnChange(f func(action, id, name string)) {
	s.notify.Lock()
	defer s.notify.Unlock()
	s.handlers = append(s.handlers, f)
}

// event is one change that handlers are told of.
type event struct {
	action string
	id     digest.Digest
	name   string
}

// tell is called without mu.
func (s *Store) tell(events ...event) {
	s.notify.Lock()
	defer s.notify.Unlock()
	for _, e := range events {
		for _, f := range s.handlers {
			f(e.action, e.id.String(), e.name)
		}
	}
}

// bootID names this boot of the machine; empty where the kernel doesn't say.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
