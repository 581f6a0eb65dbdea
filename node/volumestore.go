package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/volume"

	"github.com/shoal-engine/shoal/api/listing"
)

// volumes keeps the local volumes under one directory. A volume is a directory;
// what is known of it lies beside its files.
type volumes struct {
	root string
	mu   sync.Mutex // makes and removes one volume at a time
	// held are containers that are being made, by the names of their volumes: nobody
	// else knows yet that these are in use.
	held map[string][]string
}

// volumeInfo is what is kept of a volume.
type volumeInfo struct {
	Name    string
	Created time.Time
	Labels  map[string]string `json:",omitempty"`
	// Container made the volume for itself; empty if a user named the volume.
	Container string `json:",omitempty"`
}

// trashPrefix begins the names of directories that were volumes. No volume's does.
const trashPrefix = ".removed-"

func (v *volumes) dir(name string) string  { return filepath.Join(v.root, name) }
func (v *volumes) data(name string) string { return filepath.Join(v.root, name, "_data") }

// open makes the directory, and finishes removals that were interrupted.
func (v *volumes) open() error {
	if err := os.MkdirAll(v.root, 0o711); err != nil {
		return err
	}
	entries, err := os.ReadDir(v.root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), trashPrefix) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(v.root, e.Name())))
		}
	}
	return err
}

// ensure makes a volume unless it is there, and says whether it made it.
func (v *volumes) ensure(i volumeInfo) (made bool, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.make(i)
}

// hold is ensure for a container that is being made: the volume stays until the
// container lets go of it.
func (v *volumes) hold(i volumeInfo, container string) (made bool, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if made, err = v.make(i); err == nil {
		v.held[i.Name] = append(v.held[i.Name], container)
	}
	return made, err
}

// letGo ends what a container held.
func (v *volumes) letGo(container string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for name, by := range v.held {
		by = slices.DeleteFunc(by, func(id string) bool { return id == container })
		if v.held[name] = by; len(by) == 0 {
			delete(v.held, name)
		}
	}
}

// make is ensure with mu held.
func (v *volumes) make(i volumeInfo) (made bool, err error) {
	if err := listing.CheckVolumeName(i.Name); err != nil {
		return false, err
	}
	// The description comes last: a volume without one was never finished.
	if _, err := v.load(i.Name); err == nil {
		return false, nil
	}
	if err := os.MkdirAll(v.data(i.Name), 0o755); err != nil {
		return false, fmt.Errorf("make volume %s: %w", i.Name, err)
	}
	i.Created = time.Now().UTC()
	b, err := json.Marshal(i)
	if err != nil {
		return false, err
	}
	if err := replaceFile(filepath.Join(v.dir(i.Name), "volume.json"), b, 0o600); err != nil {
		return false, fmt.Errorf("describe volume %s: %w", i.Name, err)
	}
	return true, nil
}

func (v *volumes) load(name string) (volumeInfo, error) {
	var i volumeInfo
	b, err := os.ReadFile(filepath.Join(v.dir(name), "volume.json"))
	if err == nil {
		err = json.Unmarshal(b, &i)
	}
	if err == nil && i.Name != name {
		err = fmt.Errorf("it is of volume %q", i.Name)
	}
	return i, err
}

// get finds a volume. Docker's "no such volume" if there is none.
func (v *volumes) get(name string) (volume.Volume, error) {
	if listing.CheckVolumeName(name) != nil {
		return volume.Volume{}, listing.NoSuchVolume(name)
	}
	i, err := v.load(name)
	if errors.Is(err, fs.ErrNotExist) {
		return volume.Volume{}, listing.NoSuchVolume(name)
	}
	if err != nil {
		return volume.Volume{}, fmt.Errorf("read the description of volume %s: %w", name, err)
	}
	return v.describe(i), nil
}

func (v *volumes) describe(i volumeInfo) volume.Volume {
	labels := maps.Clone(i.Labels)
	if i.Container != "" {
		if labels == nil {
			labels = map[string]string{}
		}
		labels[listing.AnonymousLabel] = ""
	}
	return volume.Volume{
		Name: i.Name, Driver: "local", Scope: "local", Labels: labels, Mountpoint: v.data(i.Name),
		CreatedAt: i.Created.Format(time.RFC3339),
	}
}

// list describes all volumes, by name. Those that can't be read are also returned, as
// an error each.
func (v *volumes) list() (all []volume.Volume, unread []error, err error) {
	entries, err := os.ReadDir(v.root)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), trashPrefix) {
			continue
		}
		i, err := v.load(e.Name())
		switch {
		case err == nil:
			all = append(all, v.describe(i))
		case !errors.Is(err, fs.ErrNotExist): // else it is being made, or was never finished
			unread = append(unread, fmt.Errorf("volume %s: %w", e.Name(), err))
		}
	}
	return all, unread, nil
}

// take removes a volume from those there are, unless users names containers that need
// it. Its files go when done is called.
func (v *volumes) take(name string, users func() []string) (done func() error, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, err := v.get(name); err != nil {
		return nil, err
	}
	by := append(slices.Clone(v.held[name]), users()...)
	if len(by) > 0 {
		slices.Sort(by)
		return nil, listing.VolumeInUse(name, slices.Compact(by))
	}
	trash := filepath.Join(v.root, trashPrefix+newID(16))
	if err := os.Rename(v.dir(name), trash); err != nil {
		return nil, fmt.Errorf("remove volume %s: %w", name, err)
	}
	return func() error {
		if err := os.RemoveAll(trash); err != nil {
			return fmt.Errorf("remove the files of volume %s: %w", name, err)
		}
		return nil
	}, nil
}

// madeBy says whether a container made a volume for itself.
func (v *volumes) madeBy(name, container string) bool {
	i, err := v.load(name)
	return err == nil && i.Container == container
}

// path finds the directory to mount: the volume, or one inside of it.
func (v *volumes) path(p mountPoint) (string, error) {
	if p.Subpath == "" {
		return v.data(p.Name), nil
	}
	root, err := os.OpenRoot(v.data(p.Name))
	if err != nil {
		return "", err
	}
	defer root.Close()
	if _, err := root.Stat(p.Subpath); err != nil {
		return "", fmt.Errorf("subpath of volume %s: %w", p.Name, err)
	}
	return filepath.EvalSymlinks(filepath.Join(v.data(p.Name), p.Subpath))
}
