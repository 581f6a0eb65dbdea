package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"
)

// volumes keeps the local volumes under one directory. A volume is a directory;
// what is known of it lies beside its files.
type volumes struct {
	root string
	mu   sync.Mutex // makes and removes one volume at a time
}

// volumeInfo is what is kept of a volume.
type volumeInfo struct {
	Name    string
	Created time.Time
	// Container made the volume for itself; empty if a user named the volume.
	Container string `json:",omitempty"`
}

var volumeForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

func checkVolumeName(name string) error {
	if !volumeForm.MatchString(name) {
		return fmt.Errorf("create %s: %q includes invalid characters for a local volume name, "+
			"only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path", name, name)
	}
	return nil
}

func (v *volumes) dir(name string) string  { return filepath.Join(v.root, name) }
func (v *volumes) data(name string) string { return filepath.Join(v.root, name, "_data") }

// ensure makes a volume unless it is there, and says whether it made it.
func (v *volumes) ensure(name, container string) (made bool, err error) {
	if err := checkVolumeName(name); err != nil {
		return false, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	// The description comes last: a volume without one was never finished.
	if _, err := v.load(name); err == nil {
		return false, nil
	}
	if err := os.MkdirAll(v.data(name), 0o755); err != nil {
		return false, fmt.Errorf("make volume %s: %w", name, err)
	}
	b, err := json.Marshal(volumeInfo{Name: name, Created: time.Now().UTC(), Container: container})
	if err != nil {
		return false, err
	}
	if err := replaceFile(filepath.Join(v.dir(name), "volume.json"), b, 0o600); err != nil {
		return false, fmt.Errorf("describe volume %s: %w", name, err)
	}
	return true, nil
}

func (v *volumes) load(name string) (volumeInfo, error) {
	var i volumeInfo
	b, err := os.ReadFile(filepath.Join(v.dir(name), "volume.json"))
	if err == nil {
		err = json.Unmarshal(b, &i)
	}
	return i, err
}

// removeOf removes a volume that a container made for itself; another's stays,
// and so does one that has a name of its own.
func (v *volumes) removeOf(name, container string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	i, err := v.load(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && i.Container != container {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read volume %s: %w", name, err)
	}
	if err := os.RemoveAll(v.dir(name)); err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	return nil
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
