// Package imagetar writes image archives in the format of "docker save" from files held in memory.
package imagetar

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// File is an entry of a layer. A name that ends in a slash is a directory; Link
// makes it a symbolic link and HardLink a hard link to an earlier file of the
// layer. Mode holds permission bits, set-id bits and the sticky bit as chmod(2)
// has them; zero means 0755 for directories and 0644 for files.
type File struct {
	Name           string
	Body           []byte
	Link, HardLink string
	Mode           int64
	UID, GID       int
	Xattrs         map[string]string
}

// Image is what an archive holds. Refs without a tag get :latest. Layers come
// lowest first. The zero Created is the epoch, so that equal images have equal
// digests.
type Image struct {
	Refs         []string
	Config       ocispec.ImageConfig
	Architecture string // empty means this machine's own
	Created      time.Time
	Layers       [][]File
}

// ID is the digest of the image's configuration, its ID.
func (i Image) ID() (digest.Digest, error) {
	b, err := i.build()
	return b.id, err
}

// manifestEntry is an element of manifest.json.
type manifestEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// built is an image made ready for writing.
type built struct {
	id     digest.Digest
	config []byte
	layers [][]byte
	refs   []string
}

// Bytes is the archive of images in memory.
func Bytes(images ...Image) ([]byte, error) {
	var b bytes.Buffer
	err := Write(&b, images...)
	return b.Bytes(), err
}

// Write writes the archive of images to w.
func Write(w io.Writer, images ...Image) error {
	t := tar.NewWriter(w)
	written := map[string]bool{}
	put := func(name string, body []byte) error {
		if written[name] {
			return nil
		}
		written[name] = true
		return writeFile(t, File{Name: name, Body: body}, time.Unix(0, 0))
	}
	manifest := []manifestEntry{}
	repositories := map[string]map[string]string{}
	for n, i := range images {
		b, err := i.build()
		if err != nil {
			return fmt.Errorf("build image %d: %w", n, err)
		}
		e := manifestEntry{Config: b.id.Encoded() + ".json", RepoTags: b.refs}
		if err := put(e.Config, b.config); err != nil {
			return fmt.Errorf("write config: %w", err)
		}
		top := ""
		for _, l := range b.layers {
			top = hex.EncodeToString(sum(l))
			e.Layers = append(e.Layers, top+"/layer.tar")
			if err := put(top+"/layer.tar", l); err != nil {
				return fmt.Errorf("write layer: %w", err)
			}
		}
		for _, r := range b.refs {
			name, tag := r[:strings.LastIndexByte(r, ':')], r[strings.LastIndexByte(r, ':')+1:]
			if repositories[name] == nil {
				repositories[name] = map[string]string{}
			}
			repositories[name][tag] = top
		}
		manifest = append(manifest, e)
	}
	for _, f := range []struct {
		name string
		v    any
	}{{"manifest.json", manifest}, {"repositories", repositories}} {
		b, err := json.Marshal(f.v)
		if err != nil {
			return fmt.Errorf("encode %s: %w", f.name, err)
		}
		if err := put(f.name, b); err != nil {
			return fmt.Errorf("write %s: %w", f.name, err)
		}
	}
	return t.Close()
}

func (i Image) build() (built, error) {
	b := built{}
	for _, r := range i.Refs {
		named, err := reference.ParseNormalizedNamed(r)
		if err != nil {
			return built{}, fmt.Errorf("parse reference: %w", err)
		}
		tagged, ok := reference.TagNameOnly(named).(reference.NamedTagged)
		if !ok {
			return built{}, errors.New("a reference by digest can't be tagged")
		}
		b.refs = append(b.refs, reference.FamiliarString(tagged))
	}
	created := time.Unix(0, 0).UTC()
	if !i.Created.IsZero() {
		created = i.Created.UTC()
	}
	c := ocispec.Image{
		Created:  &created,
		Platform: ocispec.Platform{Architecture: i.Architecture, OS: "linux"},
		Config:   i.Config,
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	if c.Architecture == "" {
		c.Architecture = runtime.GOARCH
	}
	for n, files := range i.Layers {
		l, err := Layer(created, files...)
		if err != nil {
			return built{}, fmt.Errorf("write layer %d: %w", n, err)
		}
		b.layers = append(b.layers, l)
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.NewDigestFromBytes(digest.SHA256, sum(l)))
		c.History = append(c.History, ocispec.History{
			Created: &created, CreatedBy: fmt.Sprintf("ADD %d files", len(files)),
		})
	}
	var err error
	if b.config, err = json.Marshal(c); err != nil {
		return built{}, fmt.Errorf("encode config: %w", err)
	}
	b.id = digest.FromBytes(b.config)
	return b, nil
}

// Layer is the tar of files, in their order.
func Layer(modified time.Time, files ...File) ([]byte, error) {
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	for _, f := range files {
		if err := writeFile(t, f, modified); err != nil {
			return nil, fmt.Errorf("write %s: %w", f.Name, err)
		}
	}
	err := t.Close()
	return b.Bytes(), err
}

func writeFile(t *tar.Writer, f File, modified time.Time) error {
	h := &tar.Header{
		Name: f.Name, Mode: f.Mode, Uid: f.UID, Gid: f.GID, ModTime: modified,
		Typeflag: tar.TypeReg, Size: int64(len(f.Body)),
	}
	if h.Mode == 0 {
		h.Mode = 0o644
	}
	switch {
	case strings.HasSuffix(f.Name, "/"):
		h.Typeflag, h.Size = tar.TypeDir, 0
		if f.Mode == 0 {
			h.Mode = 0o755
		}
	case f.Link != "":
		h.Typeflag, h.Size, h.Linkname, h.Mode = tar.TypeSymlink, 0, f.Link, 0o777
	case f.HardLink != "":
		h.Typeflag, h.Size, h.Linkname = tar.TypeLink, 0, f.HardLink
	}
	for k, v := range f.Xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+k] = v
	}
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	if h.Size == 0 {
		return nil
	}
	_, err := t.Write(f.Body)
	return err
}

func sum(b []byte) []byte {
	s := sha256.Sum256(b)
	return s[:]
}

// Busybox is a small image named busybox:latest made of the static busybox
// binary at path (Debian's busybox-static puts it at /bin/busybox), with a link
// for every applet the binary says it has. It runs the binary to ask.
func Busybox(path string) (Image, error) {
	body, err := os.ReadFile(path)
	if err != nil {
		return Image{}, fmt.Errorf("read busybox: %w", err)
	}
	list, err := exec.Command(path, "--list").Output()
	if err != nil {
		return Image{}, fmt.Errorf("list the applets of busybox: %w", err)
	}
	files := []File{
		{Name: "bin/"}, {Name: "dev/"}, {Name: "etc/"}, {Name: "home/"}, {Name: "proc/"},
		{Name: "root/", Mode: 0o700}, {Name: "sys/"}, {Name: "tmp/", Mode: 0o1777}, {Name: "usr/"},
		{Name: "usr/bin/"}, {Name: "usr/sbin/"}, {Name: "var/"}, {Name: "var/tmp/", Mode: 0o1777},
		{Name: "sbin", Link: "bin"},
		{Name: "etc/passwd", Body: []byte("root:x:0:0:root:/root:/bin/sh\n" +
			"daemon:x:1:1:daemon:/usr/sbin:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n")},
		{Name: "etc/group", Body: []byte("root:x:0:\ndaemon:x:1:\nusers:x:100:\nnogroup:x:65534:\n")},
		{Name: "bin/busybox", Body: body, Mode: 0o755},
	}
	for _, applet := range strings.Fields(string(list)) {
		if applet != "busybox" && !strings.ContainsRune(applet, '/') {
			files = append(files, File{Name: "bin/" + applet, Link: "busybox"})
		}
	}
	return Image{
		Refs: []string{"busybox:latest"},
		Config: ocispec.ImageConfig{
			Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Cmd: []string{"sh"},
		},
		Layers: [][]File{files},
	}, nil
}
