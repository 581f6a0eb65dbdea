package plugin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"syscall"

	"github.com/shoal-engine/shoal/api"
)

// Prefix begins the name of every plugin's file.
const Prefix = "shoal-transport-"

// CheckName says what is wrong with a plugin's name.
func CheckName(name string) error {
	if ok, _ := regexp.MatchString(`^[a-z0-9][a-z0-9-]{0,31}$`, name); !ok {
		return api.InvalidArgument("%q is no plugin's name: want lower-case letters, digits and hyphens", name)
	}
	return nil
}

// executable finds a plugin's file. The error says why it isn't one to be run as root:
// somebody else could have written it, or put it there.
func executable(dir, name string) (string, error) {
	path, err := filepath.EvalSymlinks(filepath.Join(dir, Prefix+name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("there is no %s in %s", Prefix+name, dir)
	}
	if err != nil {
		return "", err
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", err
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return "", fmt.Errorf("%s can't be executed", path)
	}
	// Whoever may write to a directory can replace what is in it; a sticky one, such
	// as /tmp, only by their own.
	for p := path; ; p = filepath.Dir(p) {
		if info, err = os.Stat(p); err != nil {
			return "", err
		}
		owner := info.Sys().(*syscall.Stat_t).Uid
		open := info.Mode()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0
		if int(owner) != 0 || open {
			return "", fmt.Errorf("%s is not run: %s can be changed by others than root (owner %d, mode %v)", path, p, owner, info.Mode().Perm())
		}
		if p == filepath.Dir(p) {
			return path, nil
		}
	}
}
