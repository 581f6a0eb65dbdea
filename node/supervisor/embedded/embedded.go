// Package embedded holds the supervisor's own small executable, where the build made one.
package embedded

import (
	"embed"
	"errors"
	"io/fs"
)

// The directory is there without the executable, too, so that everything builds
// with plain go build.
//
//go:embed all:bin
var files embed.FS

// Open opens the executable; ok is false if none was built in.
func Open() (f fs.File, ok bool, err error) {
	f, err = files.Open("bin/shoal-supervisor")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	return f, err == nil, err
}
