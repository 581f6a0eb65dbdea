package node

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// recordVersion is the version of a record's form on disk. A change that an older
// agent would misread raises it.
const recordVersion = 1

// configFile is a record's name in its container's directory.
const configFile = "config.json"

// record is all that is kept of a container.
type record struct {
	ID      string
	Name    string // without a leading slash
	Created time.Time

	Image    digest.Digest       // the image's ID
	Manifest *ocispec.Descriptor `json:",omitempty"`
	OS, Arch string              // the image's platform

	Path       string   // the command
	Args       []string // and its arguments
	Config     *container.Config
	HostConfig *container.HostConfig
	Endpoints  map[string]*network.EndpointSettings // as asked for
	Mounts     []mountPoint

	State        state
	RestartCount int
	// Stopped says that a user stopped it, so that unless-stopped leaves it alone.
	Stopped bool
}

// state is where a container stands.
type state struct {
	Status                container.ContainerState
	Pid, ExitCode         int
	OOMKilled             bool
	Error                 string
	StartedAt, FinishedAt time.Time
}

// transitions lists where each state may lead.
var transitions = map[container.ContainerState][]container.ContainerState{
	container.StateCreated:    {container.StateRunning, container.StateExited, container.StateRemoving},
	container.StateRunning:    {container.StatePaused, container.StateExited, container.StateRestarting},
	container.StatePaused:     {container.StateRunning, container.StateExited, container.StateRestarting},
	container.StateRestarting: {container.StateRunning, container.StateExited, container.StateRemoving},
	container.StateExited:     {container.StateRunning, container.StateRemoving},
	container.StateRemoving:   {container.StateDead},
	container.StateDead:       {container.StateRemoving},
}

// to moves to another state; a move that is not allowed is an error of ours, not
// of a client.
func (s *state) to(next container.ContainerState) error {
	if !slices.Contains(transitions[s.Status], next) {
		return fmt.Errorf("a container can't go from %s to %s", s.Status, next)
	}
	s.Status = next
	return nil
}

// active says whether there is a process, or soon will be again.
func (s state) active() bool { return s.live() || s.Status == container.StateRestarting }

// live says whether there is a process.
func (s state) live() bool {
	return s.Status == container.StateRunning || s.Status == container.StatePaused
}

// clone copies what a change of the copy could reach and that changes in place
// after creation.
func (r record) clone() record {
	config, host := *r.Config, *r.HostConfig
	r.Config, r.HostConfig = &config, &host
	r.Endpoints = maps.Clone(r.Endpoints)
	r.Mounts = slices.Clone(r.Mounts)
	return r
}

// envelope is a record on disk: the checksum is of the container's bytes, whatever
// the version.
type envelope struct {
	Version   int             `json:"version"`
	Checksum  string          `json:"checksum"`
	Container json.RawMessage `json:"container"`
}

// encode writes a record for disk.
func (r record) encode() ([]byte, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	return json.Marshal(envelope{recordVersion, checksum(body), body})
}

func checksum(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// errCorrupt is what a record fails with that can't be a container's.
var errCorrupt = errors.New("corrupt record")

// errVersion is what a record of another version fails with: nothing is wrong with
// it, but this agent must leave it alone.
var errVersion = errors.New("record of another version")

// decodeRecord reads what encode wrote. Bytes that encode can't have written are
// errCorrupt, those of an agent too new or too old errVersion.
func decodeRecord(b []byte) (record, error) {
	var e envelope
	if err := json.Unmarshal(b, &e); err != nil {
		return record{}, fmt.Errorf("%w: %w", errCorrupt, err)
	}
	if got := checksum(e.Container); got != e.Checksum {
		return record{}, fmt.Errorf("%w: its checksum is %s, not %s", errCorrupt, got, e.Checksum)
	}
	if e.Version != recordVersion {
		return record{}, fmt.Errorf("%w: it is version %d, this agent reads %d", errVersion, e.Version, recordVersion)
	}
	var r record
	if err := json.Unmarshal(e.Container, &r); err != nil {
		return record{}, fmt.Errorf("%w: %w", errCorrupt, err)
	}
	if !validID(r.ID) || r.Name == "" || r.Config == nil || r.HostConfig == nil || transitions[r.State.Status] == nil {
		return record{}, fmt.Errorf("%w: it lacks an ID, a name, a configuration or a state", errCorrupt)
	}
	return r, nil
}

// save puts the record into its container's directory, wholly or not at all. It
// survives the agent's death at any point, and works on a full disk for a container
// that is there. It does not wait for the disk: a record that a power failure tore is
// recognised by its checksum.
func (r record) save(dir string) error {
	b, err := r.encode()
	if err != nil {
		return fmt.Errorf("encode the record: %w", err)
	}
	return exchangeFile(filepath.Join(dir, configFile), b)
}

// loadRecord reads the record in a container's directory.
func loadRecord(dir string) (record, error) {
	b, err := os.ReadFile(filepath.Join(dir, configFile))
	if err != nil {
		return record{}, err
	}
	r, err := decodeRecord(b)
	if err == nil && r.ID != filepath.Base(dir) {
		err = fmt.Errorf("%w: it is of container %s", errCorrupt, r.ID)
	}
	return r, err
}

const (
	// spareSuffix is of the file that the next record goes to. It keeps its place on the
	// disk, so that a container can also end, be stopped and go when the disk is full.
	spareSuffix = ".spare"
	// recordStep is what records are filled up to with blanks, and recordRoom how many of
	// these there are at least, for the next record may be longer.
	recordStep = 4 << 10
	recordRoom = 1 << 10
)

// exchangeFile writes b, which blanks may follow, to the spare of a file and makes each
// the other.
func exchangeFile(path string, b []byte) error {
	spare := path + spareSuffix
	if err := overwrite(spare, b); err != nil {
		return err
	}
	err := unix.Renameat2(unix.AT_FDCWD, spare, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOENT): // the first one
		if err := os.Rename(spare, path); err != nil {
			return err
		}
		return overwrite(spare, b)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS): // a file system that can't
		return os.Rename(spare, path)
	}
	return &os.PathError{Op: "exchange", Path: path, Err: err}
}

// overwrite writes b and blanks over what is in a file, and takes no further place if
// there is enough.
func overwrite(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	size := max((len(b)+recordRoom+recordStep-1)/recordStep*recordStep, int(fi.Size()))
	_, err = f.Write(append(b, bytes.Repeat([]byte{' '}, size-len(b))...))
	return errors.Join(err, f.Close())
}

// replaceFile writes a file beside path and moves it there.
func replaceFile(path string, b []byte, mode os.FileMode) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, mode); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
