package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	mobynet "github.com/moby/moby/api/types/network"
)

// recordVersion is the format of the files below Root.
const recordVersion = 1

// recordLimit bounds a file read back, in bytes.
const recordLimit = 4 << 20

// record is an endpoint on disk.
type record struct {
	Version     int             `json:"version"`
	ContainerID string          `json:"container"`
	Mode        string          `json:"mode"`
	EndpointID  string          `json:"endpoint"`
	Netns       string          `json:"netns"` // file name below RunDir
	Link        string          `json:"link,omitempty"`
	Address     netip.Prefix    `json:"address,omitzero"`
	Gateway     netip.Addr      `json:"gateway,omitzero"`
	MAC         string          `json:"mac,omitempty"`
	Ports       []recordPublish `json:"ports,omitempty"`
}

type recordPublish struct {
	HostIP        netip.Addr `json:"hostIP,omitzero"`
	HostPort      uint16     `json:"hostPort"`
	ContainerPort uint16     `json:"containerPort"`
	Proto         string     `json:"proto"`
}

// fileName is what may be part of a path: no separator, no leading dot.
var fileName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

func (r record) publishes() []Publish {
	var ps []Publish
	for _, p := range r.Ports {
		ps = append(ps, Publish{HostIP: p.HostIP, HostPort: p.HostPort, ContainerPort: p.ContainerPort, Proto: mobynet.IPProtocol(p.Proto)})
	}
	return ps
}

func (r *record) setPublishes(ps []Publish) {
	r.Ports = nil
	for _, p := range ps {
		r.Ports = append(r.Ports, recordPublish{HostIP: p.HostIP, HostPort: p.HostPort, ContainerPort: p.ContainerPort, Proto: string(p.Proto)})
	}
}

// decodeRecord reads an endpoint back and trusts none of it.
func decodeRecord(b []byte) (record, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return record{}, fmt.Errorf("decode endpoint: %w", err)
	}
	if r.Version != recordVersion {
		return record{}, fmt.Errorf("decode endpoint: version %d is unknown", r.Version)
	}
	if !fileName.MatchString(r.ContainerID) || !fileName.MatchString(r.Netns) {
		return record{}, errors.New("decode endpoint: a name is not a file name")
	}
	if r.Mode == modeNone {
		if r.Link != "" || r.Address.IsValid() || len(r.Ports) > 0 {
			return record{}, errors.New("decode endpoint: mode none has an address")
		}
		return r, nil
	}
	if r.Mode != modeBridge {
		return record{}, fmt.Errorf("decode endpoint: mode %q is unknown", r.Mode)
	}
	if err := r.checkBridge(); err != nil {
		return record{}, fmt.Errorf("decode endpoint: %w", err)
	}
	return r, nil
}

func (r record) checkBridge() error {
	if err := checkSubnet(r.Address.Masked()); err != nil {
		return err
	}
	if !r.Gateway.Is4() || !r.Address.Contains(r.Gateway) || r.Gateway == r.Address.Addr() {
		return fmt.Errorf("gateway %s is not a neighbour of %s", r.Gateway, r.Address)
	}
	if _, err := net.ParseMAC(r.MAC); err != nil {
		return err
	}
	if !fileName.MatchString(r.Link) || len(r.Link) > maxLinkName {
		return fmt.Errorf("%q is not a link's name", r.Link)
	}
	for _, p := range r.publishes() {
		if err := checkPublish(p); err != nil {
			return err
		}
		if p.HostPort == 0 {
			return errors.New("a published port has no number")
		}
	}
	return nil
}

// store keeps a Network's files.
type store struct{ root string }

func (s store) endpointFile(id string) string {
	return filepath.Join(s.root, "endpoints", id+".json")
}

func (s store) saveEndpoint(r record) error {
	r.Version = recordVersion
	return s.write(s.endpointFile(r.ContainerID), r)
}

func (s store) removeEndpoint(id string) error {
	if err := os.Remove(s.endpointFile(id)); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("remove endpoint: %w", err)
	}
	return nil
}

// loadEndpoints reads every endpoint. Files that can't be read are returned apart: what
// they described is left over and will be cleaned.
func (s store) loadEndpoints() (rs []record, bad map[string]error, err error) {
	dir := filepath.Join(s.root, "endpoints")
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list endpoints: %w", err)
	}
	bad = map[string]error{}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		b, err := readLimited(path)
		if err != nil {
			bad[path] = err
			continue
		}
		r, err := decodeRecord(b)
		if err == nil && r.ContainerID+".json" != e.Name() {
			err = fmt.Errorf("decode endpoint: it is of container %s", r.ContainerID)
		}
		if err != nil {
			bad[path] = err
			continue
		}
		rs = append(rs, r)
	}
	return rs, bad, nil
}

// cursor is ipam.json.
type cursor struct {
	Subnet netip.Prefix `json:"subnet"`
	Next   netip.Addr   `json:"next"`
}

func (s store) saveCursor(p *ipam) error {
	return s.write(filepath.Join(s.root, "ipam.json"), cursor{Subnet: p.subnet, Next: fromUint(p.next)})
}

// loadCursor moves p's search to where it was, if that is known.
func (s store) loadCursor(p *ipam) {
	var c cursor
	b, err := readLimited(filepath.Join(s.root, "ipam.json"))
	if err != nil || json.Unmarshal(b, &c) != nil {
		return // a lost cursor costs a little rest of the addresses, no correctness
	}
	if c.Subnet == p.subnet && c.Next.Is4() {
		p.next = toUint(c.Next)
	}
}

// overlayState is overlay.json.
type overlayState struct {
	On       bool // there were routes once: what is smaller and guarded since stays so
	Routes   []Route
	Forwards []Forward
}

func (s store) saveOverlay(o overlayState) error {
	return s.write(filepath.Join(s.root, "overlay.json"), o)
}

func (s store) loadOverlay() overlayState {
	var o overlayState
	b, err := readLimited(filepath.Join(s.root, "overlay.json"))
	if err != nil || json.Unmarshal(b, &o) != nil {
		return overlayState{} // the cluster's view comes again soon
	}
	o.Forwards = slices.DeleteFunc(o.Forwards, func(f Forward) bool { return checkForward(&f) != nil })
	return o
}

// remove deletes every file.
func (s store) remove() error {
	for _, name := range []string{"endpoints", "ipam.json", "overlay.json"} {
		if err := os.RemoveAll(filepath.Join(s.root, name)); err != nil {
			return fmt.Errorf("remove network state: %w", err)
		}
	}
	return nil
}

// write replaces a file atomically.
func (s store) write(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	f, err := os.CreateTemp(s.root, tempPrefix)
	if err != nil {
		return fmt.Errorf("save %s: %w", filepath.Base(path), err)
	}
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("save %s: %w", filepath.Base(path), err)
	}
	return nil
}

const tempPrefix = ".tmp-"

// clean removes what a crash in the middle of write left.
func (s store) clean() {
	entries, _ := os.ReadDir(s.root)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			os.Remove(filepath.Join(s.root, e.Name()))
		}
	}
}

func readLimited(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > recordLimit {
		return nil, fmt.Errorf("%s is not a state file", path)
	}
	return os.ReadFile(path)
}
