// Command mkimage writes a docker-save archive of an image made from files of this machine.
//
//	mkimage -o web.tar -ref web:1 -cmd /web -port 80 -pad 32MiB /web=bin/webapp
//	mkimage -o busybox.tar -busybox
package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"

	"github.com/docker/go-units"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api/imagetar"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

func run() error {
	out := flag.String("o", "", "archive to write")
	ref := flag.String("ref", "image:latest", "name of the image")
	command := flag.String("cmd", "", "command, its words separated by blanks")
	env := flag.String("env", "", "environment, K=V separated by blanks")
	port := flag.String("port", "", "exposed port")
	pad := flag.String("pad", "0", "size of a first layer of noise, which nothing compresses")
	seed := flag.Uint64("seed", 1, "the noise's seed: equal seeds make equal layers")
	busybox := flag.Bool("busybox", false, "the busybox image instead, from /bin/busybox")
	flag.Parse()
	if *out == "" {
		return fmt.Errorf("-o is missing: name the archive to write")
	}
	f, err := os.Create(*out)
	if err != nil {
		return err
	}
	defer f.Close()
	if *busybox {
		img, err := imagetar.Busybox("/bin/busybox")
		if err != nil {
			return err
		}
		return imagetar.Write(f, img)
	}
	img, err := image(*ref, *command, *env, *port, *pad, *seed, flag.Args())
	if err != nil {
		return err
	}
	if err := imagetar.Write(f, img); err != nil {
		return err
	}
	return f.Close()
}

func image(ref, command, env, port, pad string, seed uint64, files []string) (imagetar.Image, error) {
	img := imagetar.Image{Refs: []string{ref}, Config: ocispec.ImageConfig{Cmd: strings.Fields(command), Env: strings.Fields(env)}}
	if port != "" {
		img.Config.ExposedPorts = map[string]struct{}{port + "/tcp": {}}
	}
	size, err := units.RAMInBytes(pad)
	if err != nil {
		return img, fmt.Errorf("-pad %q: %w", pad, err)
	}
	if size > 0 {
		img.Layers = append(img.Layers, []imagetar.File{{Name: "noise", Body: noise(size, seed)}})
	}
	layer := []imagetar.File{{Name: "tmp/", Mode: 0o1777}}
	for _, arg := range files {
		inside, outside, ok := strings.Cut(arg, "=")
		if !ok {
			return img, fmt.Errorf("%q: want /path/in/image=file", arg)
		}
		body, err := os.ReadFile(outside)
		if err != nil {
			return img, err
		}
		layer = append(layer, imagetar.File{Name: strings.TrimPrefix(inside, "/"), Body: body, Mode: 0o755})
	}
	img.Layers = append(img.Layers, layer)
	return img, nil
}

// noise is what no compressor and no two seeds share.
func noise(size int64, seed uint64) []byte {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	b := make([]byte, size)
	_, _ = rand.NewChaCha8(key).Read(b) // never fails
	return b
}
