// Package identity keeps what a node is: its key, and the cluster it belongs to.
//
// In the data directory:
//
//	node.key      the Ed25519 key as PKCS #8 in PEM; made at the first start, mode 0600
//	cluster.json  the cluster's ID and gossip key, the node's name, a checksum; mode 0600
//
// Both are replaced as a whole, so a crash leaves the old file or the new one. A file
// that is damaged or readable by others is an error that names it, never made anew: a
// new key would be a new node.
package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/shoal-engine/shoal/api"
)

const (
	keyFile   = "node.key"
	stateFile = "cluster.json"
	pemType   = "PRIVATE KEY"

	stateVersion = 1
	maxFileSize  = 64 << 10
)

// GossipKeySize is the length of State.GossipKey.
const GossipKeySize = 32

// Key reads the node's key from a data directory, and makes it if there is none. The
// directory is created if need be.
func Key(dir string) (ed25519.PrivateKey, error) {
	path := filepath.Join(dir, keyFile)
	b, err := readSecret(path)
	if errors.Is(err, fs.ErrNotExist) {
		return newKey(dir, path)
	}
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(b)
	if block == nil || block.Type != pemType || len(rest) > 0 {
		return nil, damaged(path, "it isn't one PEM block of a private key")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, damaged(path, err.Error())
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, damaged(path, "it isn't an Ed25519 key")
	}
	return key, nil
}

func newKey(dir, path string) (ed25519.PrivateKey, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the node's key: %w", err)
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the node's key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("make the node's key: %w", err)
	}
	if err := writeSecret(path, pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der})); err != nil {
		return nil, fmt.Errorf("keep the node's key: %w", err)
	}
	return key, nil
}

// State is what a node remembers of the cluster it belongs to.
type State struct {
	ClusterID string `json:"clusterID"`
	NodeName  string `json:"nodeName"`
	// GossipKey encrypts the gossip; all nodes have it.
	GossipKey []byte `json:"gossipKey"`
	// Peers are those known last, for the next start.
	Peers []PeerAddr `json:"peers,omitempty"`
	// PeersAt is the catalog's index that Peers are of. A replica that replays its log
	// passes through views of before it, which say nothing about who is a member now.
	PeersAt uint64 `json:"peersAt,omitempty"`
}

// stored is State in its file. The checksum is over the bytes of State as they are.
type stored struct {
	Version  int             `json:"version"`
	Checksum string          `json:"checksum"`
	State    json.RawMessage `json:"state"`
}

// NewCluster is the state of the first node of a new cluster.
func NewCluster(nodeName string) (State, error) {
	b := make([]byte, 16+GossipKeySize)
	if _, err := rand.Read(b); err != nil {
		return State{}, fmt.Errorf("make a cluster: %w", err)
	}
	return State{ClusterID: hex.EncodeToString(b[:16]), NodeName: nodeName, GossipKey: b[16:]}, nil
}

// LoadState reads the state from a data directory; NotFound if the node belongs to no
// cluster.
func LoadState(dir string) (State, error) {
	path := filepath.Join(dir, stateFile)
	b, err := readSecret(path)
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, api.NotFound("this node belongs to no cluster: there is no %s", path)
	}
	if err != nil {
		return State{}, err
	}
	s, err := decodeState(b)
	if err != nil {
		return State{}, damaged(path, err.Error())
	}
	return s, nil
}

func decodeState(b []byte) (State, error) {
	var f stored
	if err := json.Unmarshal(b, &f); err != nil {
		return State{}, err
	}
	if f.Version != stateVersion {
		return State{}, fmt.Errorf("it has version %d, this program reads version %d", f.Version, stateVersion)
	}
	if f.Checksum != checksum(f.State) {
		return State{}, errors.New("its checksum doesn't match")
	}
	var s State
	if err := json.Unmarshal(f.State, &s); err != nil {
		return State{}, err
	}
	return s, s.validate()
}

func (s State) validate() error {
	switch {
	case s.ClusterID == "":
		return errors.New("it has no cluster ID")
	case s.NodeName == "":
		return errors.New("it has no node name")
	case len(s.GossipKey) != GossipKeySize:
		return fmt.Errorf("the gossip key has %d bytes instead of %d", len(s.GossipKey), GossipKeySize)
	}
	return nil
}

// Save writes the state to a data directory, which is created if need be.
func (s State) Save(dir string) error {
	if err := s.validate(); err != nil {
		return api.InvalidArgument("keep the cluster's state: %w", err)
	}
	state, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("keep the cluster's state: %w", err)
	}
	b, err := json.Marshal(stored{Version: stateVersion, Checksum: checksum(state), State: state})
	if err != nil {
		return fmt.Errorf("keep the cluster's state: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("keep the cluster's state: %w", err)
	}
	if err := writeSecret(filepath.Join(dir, stateFile), append(b, '\n')); err != nil {
		return fmt.Errorf("keep the cluster's state: %w", err)
	}
	return nil
}

// RemoveState forgets the cluster, when the node has left it. The key stays.
func RemoveState(dir string) error {
	err := os.Remove(filepath.Join(dir, stateFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget the cluster: %w", err)
	}
	return syncDir(dir)
}

func checksum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func damaged(path, why string) error {
	return api.Errorf(errdefs.ErrDataLoss, "%s is damaged: %s; restore it from a backup, or move it away to start anew", path, why)
}

// readSecret reads a file that only its owner may read.
func readSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if !st.Mode().IsRegular() {
		return nil, damaged(path, "it isn't a regular file")
	}
	if open := st.Mode().Perm() & 0o077; open != 0 {
		return nil, api.Errorf(errdefs.ErrPermissionDenied, "%s holds a secret, but its mode %04o lets others at it: chmod 600 %s", path, st.Mode().Perm(), path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(b) > maxFileSize {
		return nil, damaged(path, "it is too large")
	}
	return b, nil
}

// writeSecret replaces a file as a whole, and has it on disk when it returns.
func writeSecret(path string, b []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(b); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes a rename last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
