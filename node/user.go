package node

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/moby/sys/user"

	"github.com/shoal-engine/shoal/api"
)

// maxAccounts bounds a passwd or group file: it comes from an image.
const maxAccounts = 16 << 20

// identity is a user as the kernel knows one.
type identity struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// lookUser finds a user (name or number, with or without a group) in the accounts
// of a root file system, whose links lead nowhere outside of it. Empty is root.
func lookUser(rootfs, spec string, more []string) (identity, error) {
	passwd, err := readInRoot(rootfs, "/etc/passwd")
	if err != nil {
		return identity{}, err
	}
	group, err := readInRoot(rootfs, "/etc/group")
	if err != nil {
		return identity{}, err
	}
	u, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, bytes.NewReader(passwd), bytes.NewReader(group))
	if err != nil {
		return identity{}, api.InvalidArgument("%w", err)
	}
	gids := u.Sgids
	if len(more) > 0 {
		added, err := user.GetAdditionalGroups(more, bytes.NewReader(group))
		if err != nil {
			return identity{}, api.InvalidArgument("Unable to find group %v: %w", more, err)
		}
		gids = append(gids, added...)
	}
	id := identity{uid: uint32(u.Uid), gid: uint32(u.Gid), home: u.Home}
	id.groups = append(id.groups, id.gid)
	for _, g := range gids {
		if uint32(g) != id.gid {
			id.groups = append(id.groups, uint32(g))
		}
	}
	return id, nil
}

// readInRoot reads a file of a root file system; one that isn't there is empty.
func readInRoot(rootfs, path string) ([]byte, error) {
	handle, err := pathrs.OpenInRoot(rootfs, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open %s of the image: %w", path, err)
	}
	defer handle.Close()
	info, err := handle.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil, err
	}
	f, err := pathrs.Reopen(handle, os.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("open %s of the image: %w", path, err)
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxAccounts))
}
