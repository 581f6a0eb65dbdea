package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
)

// maxRecord bounds a record's file. The largest are layers with lists of whiteouts.
const maxRecord = 64 << 20

// corruptSuffix is added to the name of a record that did not verify.
const corruptSuffix = ".corrupt"

// envelope is how a record lies on disk. Sum is the digest of Body's bytes as they
// stand in the file.
type envelope struct {
	Version int             `json:"version"`
	Sum     digest.Digest   `json:"sum"`
	Body    json.RawMessage `json:"body"`
}

// recordVersion is written into every record; a store refuses newer ones.
const recordVersion = 1

func encodeRecord(v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return json.Marshal(envelope{Version: recordVersion, Sum: digest.FromBytes(body), Body: body})
}

func decodeRecord(b []byte, v any) error {
	var e envelope
	if err := json.Unmarshal(b, &e); err != nil {
		return err
	}
	if e.Version != recordVersion {
		return fmt.Errorf("version %d is not known", e.Version)
	}
	if got := digest.FromBytes(e.Body); got != e.Sum {
		return fmt.Errorf("checksum is %s, not %s", got, e.Sum)
	}
	return json.Unmarshal(e.Body, v)
}

// writeRecord replaces the record at path; after a crash either the old or the new
// one is there. Without sync a crash of the machine may leave neither.
func writeRecord(path string, v any, sync bool) error {
	b, err := encodeRecord(v)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, bytes.NewReader(b))
	if err == nil && sync {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	if sync {
		return syncDir(filepath.Dir(path))
	}
	return nil
}

func readRecord(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err != nil {
		return err
	}
	if len(b) > maxRecord {
		return fmt.Errorf("record %s: larger than %d bytes", path, maxRecord)
	}
	if err := decodeRecord(b, v); err != nil {
		return fmt.Errorf("record %s: %w", path, err)
	}
	return nil
}

// removeRecord removes the record at path, which may be gone already.
func removeRecord(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// eachRecord calls f with the path of every record in dir and sets aside those that
// f refuses, telling refused. Left-overs of writeRecord are removed.
func eachRecord(dir string, f func(path string) error, refused func(path string, err error)) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch {
		case strings.HasPrefix(e.Name(), ".tmp-"):
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		case strings.HasSuffix(e.Name(), corruptSuffix):
			continue
		}
		if err := f(path); err != nil {
			if e := os.Rename(path, path+corruptSuffix); e != nil {
				return errors.Join(err, e)
			}
			refused(path+corruptSuffix, err)
		}
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
