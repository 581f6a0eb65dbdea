package image

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-engine/shoal/api"
)

// spoolPrefix begins the names of files whose digest is not known yet.
const spoolPrefix = "tmp-"

// spooled is a file of an archive on its way to be a blob.
type spooled struct {
	path   string // empty: the blob was here already
	digest digest.Digest
	size   int64
	packed compression
}

// spool writes r to disk and says what it is.
func (s *Store) spool(r io.Reader) (spooled, error) {
	f, err := os.CreateTemp(s.path("ingest"), spoolPrefix)
	if err != nil {
		return spooled{}, api.Internal("store archive: %w", err)
	}
	digester := digest.SHA256.Digester()
	head := &headWriter{}
	n, err := io.CopyBuffer(io.MultiWriter(f, digester.Hash(), head), onlyReader{r}, make([]byte, 256<<10))
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		_ = os.Remove(f.Name())
		if errdefs.IsInvalidArgument(err) || errors.Is(err, io.ErrUnexpectedEOF) {
			return spooled{}, badTar(err)
		}
		return spooled{}, api.Internal("store archive: %w", err)
	}
	return spooled{path: f.Name(), digest: digester.Digest(), size: n, packed: detect(head.b)}, nil
}

type onlyReader struct{ io.Reader }

// headWriter keeps the first bytes.
type headWriter struct{ b []byte }

func (h *headWriter) Write(b []byte) (int, error) {
	if left := 6 - len(h.b); left > 0 {
		h.b = append(h.b, b[:min(left, len(b))]...)
	}
	return len(b), nil
}

// adopt makes a spooled file a blob, which the caller has leased.
func (s *Store) adopt(sp spooled) error {
	if sp.path == "" {
		return nil
	}
	if s.has(sp.digest) {
		if err := os.Remove(sp.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return blobError(sp.digest, err)
		}
		return nil
	}
	f, err := os.Open(sp.path)
	if err != nil {
		return blobError(sp.digest, err)
	}
	err = f.Sync()
	f.Close()
	if err != nil {
		return blobError(sp.digest, err)
	}
	if err := os.Rename(sp.path, s.blobPath(sp.digest)); err != nil {
		return blobError(sp.digest, err)
	}
	return syncDir(filepath.Dir(s.blobPath(sp.digest)))
}

// putBlob keeps bytes made here, a manifest or a config, which the caller has leased.
func (s *Store) putBlob(b []byte) (digest.Digest, error) {
	d := digest.FromBytes(b)
	if s.has(d) {
		return d, nil
	}
	f, err := os.CreateTemp(s.path("ingest"), spoolPrefix)
	if err != nil {
		return "", blobError(d, err)
	}
	_, err = f.Write(b)
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return "", blobError(d, err)
	}
	return d, s.adopt(spooled{path: f.Name(), digest: d})
}
