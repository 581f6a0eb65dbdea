package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/user"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/node/image"
	"github.com/shoal-engine/shoal/node/image/distribution"
)

// serveDistribution serves the cluster's images as a registry until ctx ends. A port
// that somebody else has is no reason not to run.
func (a *Agent) serveDistribution(ctx context.Context) error {
	c := a.cfg.Distribution
	if c.Listen == "" {
		return nil
	}
	addr, err := netip.ParseAddrPort(c.Listen)
	if err != nil {
		return fmt.Errorf("setting distribution.listen: %w", err)
	}
	names := &imageNames{a}
	cfg := distribution.Config{
		Blobs: lent{distribution.Over(a.images), a, a.registryClient()}, Names: names,
		Domain: fmt.Sprintf("localhost:%d", addr.Port()), Logger: a.log,
	}
	var secure *tls.Config
	if c.Cert == "" {
		cfg.Allow = distribution.Local(a.mayUseSockets)
	} else if secure, err = mutualTLS(c.Cert, c.Key, c.ClientCA); err != nil {
		return fmt.Errorf("the registry's certificates: %w", err)
	}
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		a.log.Warn("images are not served as a registry here; set distribution.listen to another address", "address", c.Listen, "err", err)
		return nil
	}
	if secure != nil {
		l = tls.NewListener(l, secure)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return distribution.New(cfg).Serve(ctx, l) })
	g.Go(func() error { return names.follow(ctx) })
	return g.Wait()
}

// mutualTLS serves clients only that have a certificate of an authority.
func mutualTLS(cert, key, clientCA string) (*tls.Config, error) {
	own, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(clientCA)
	if err != nil {
		return nil, err
	}
	authorities := x509.NewCertPool()
	if !authorities.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate", clientCA)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{own},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: authorities, NextProtos: []string{"http/1.1"},
	}, nil
}

// mayUseSockets says whether a user could use the agent's sockets, too.
func (a *Agent) mayUseSockets(uid int) bool {
	if uid == 0 || uid == os.Getuid() {
		return true
	}
	if a.cfg.SocketGroup == "" {
		return false
	}
	gid, err := groupID(a.cfg.SocketGroup)
	if err != nil {
		return false
	}
	u, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return false
	}
	groups, err := u.GroupIds()
	return err == nil && slices.Contains(groups, strconv.Itoa(gid))
}

const (
	// syncWithin bounds the wait for the leader before a name counts as unknown.
	syncWithin = 2 * time.Second
	// followEvery is how often what is kept here is compared with the catalog.
	followEvery = time.Minute
)

// imageNames is what the cluster, or this node alone while it is in none, means by the
// names of images.
type imageNames struct{ a *Agent }

// Resolve implements distribution.Names.
func (n *imageNames) Resolve(ctx context.Context, name reference.NamedTagged) (digest.Digest, error) {
	familiar := reference.FamiliarString(name)
	if !n.a.cluster.Member() {
		if d, ok := n.alone()[name.String()]; ok {
			return d, nil
		}
		return "", api.NotFound("no such image: %s", familiar)
	}
	if d := n.meaning(ctx, n.a.front.View(), familiar); d != "" {
		return d, n.permitted(d)
	}
	if err := n.sync(ctx); err != nil {
		n.a.log.Debug("the catalog here may be behind", "err", err)
	}
	if d := n.meaning(ctx, n.a.front.View(), familiar); d != "" {
		return d, n.permitted(d)
	}
	return "", api.NotFound("no such image: %s", familiar)
}

// permitted says whether the registry's clients may have an image.
func (n *imageNames) permitted(target digest.Digest) error {
	return n.a.policy.Image(n.a.registryClient(), target, "")
}

// sync makes sure that this node's replica of the catalog isn't behind.
func (n *imageNames) sync(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, syncWithin)
	defer cancel()
	return n.a.cluster.Store().Sync(ctx)
}

// meaning is what a view says of a familiar name; empty if nothing.
func (n *imageNames) meaning(ctx context.Context, v catalog.View, familiar string) digest.Digest {
	ref, known := v.Ref(familiar)
	if known {
		if _, err := n.a.images.Stat(ctx, digest.Digest(ref.Digest)); err == nil || len(v.Holders(ref.Digest)) > 0 {
			return digest.Digest(ref.Digest)
		}
	}
	for _, i := range v.Images() { // the same image under another manifest
		if slices.Contains(i.Summary.RepoTags, familiar) {
			return digest.Digest(i.Digest)
		}
	}
	return digest.Digest(ref.Digest) // no image, so no node is listed as its holder
}

// alone is what this node itself means by normalized names.
func (n *imageNames) alone() map[string]digest.Digest {
	all := n.a.images.Names()
	for _, k := range n.a.images.Kept() {
		all[k.Name] = k.Target
	}
	return all
}

// List implements distribution.Names.
func (n *imageNames) List(ctx context.Context) ([]distribution.Name, error) {
	all := map[string]digest.Digest{}
	if n.a.cluster.Member() {
		v := n.a.front.View()
		for _, i := range v.Images() {
			for _, tag := range i.Summary.RepoTags {
				all[tag] = digest.Digest(i.Digest)
			}
		}
		for _, ref := range refsOf(v) {
			all[ref.Name] = n.meaning(ctx, v, ref.Name)
		}
	} else {
		all = n.alone()
	}
	list := make([]distribution.Name, 0, len(all))
	for name, d := range all {
		if named, err := reference.ParseNormalizedNamed(name); err == nil {
			if tagged, ok := named.(reference.NamedTagged); ok {
				list = append(list, distribution.Name{Name: tagged, Target: d})
			}
		}
	}
	return list, nil
}

// refsOf are the names of a view that can list them.
func refsOf(v catalog.View) []catalog.Ref {
	if l, ok := v.(interface{ Refs() []catalog.Ref }); ok {
		return l.Refs()
	}
	return nil
}

// Put implements distribution.Names. What is no image here is kept as it is: a chart, a
// signature, an image for other hosts, one that doesn't unpack.
func (n *imageNames) Put(ctx context.Context, name reference.NamedTagged, target digest.Digest, parts []digest.Digest) (note string, err error) {
	familiar := reference.FamiliarString(name)
	kept := image.Kept{Name: name.String(), Target: target, Blobs: parts, Shared: n.a.cluster.Member()}
	if n.a.images.IsImage(ctx, target) {
		err := n.adopt(ctx, familiar, target)
		if err == nil {
			return "", n.a.images.Keep(ctx, kept) // what the image itself doesn't need
		}
		// NotFound are layers that only their publisher hands out.
		if !errdefs.IsInvalidArgument(err) && !errdefs.IsDataLoss(err) && !errdefs.IsNotFound(err) {
			return "", err
		}
		note = fmt.Sprintf("kept, but no node can run it: %v", err)
	}
	_, err = n.a.cluster.Engine().RemoveImage(ctx, familiar, api.ImageRemoveOptions{Force: true}) // that had the name
	if err != nil && !errdefs.IsNotFound(err) {
		return "", err
	}
	if err := n.a.images.Keep(ctx, kept); err != nil {
		return "", err
	}
	return note, n.propose(ctx, catalog.SetRef{Ref: catalog.Ref{Name: familiar, Digest: target.String()}})
}

// adopt makes what is here an image as by a pull: the engine makes the cluster know it,
// and waits until it does.
func (n *imageNames) adopt(ctx context.Context, familiar string, target digest.Digest) error {
	s, err := n.a.cluster.Engine().PullImage(ctx, api.PullOptions{Ref: familiar, Digest: target.String()})
	if err != nil {
		return err
	}
	defer s.Close()
	for line, err := range api.All(s) {
		if err != nil {
			return err
		}
		if line.Error != nil {
			return api.Internal("%s", line.Error.Message)
		}
	}
	return nil
}

// Drop implements distribution.Names.
func (n *imageNames) Drop(ctx context.Context, name reference.NamedTagged) error {
	familiar := reference.FamiliarString(name)
	_, err := n.a.cluster.Engine().RemoveImage(ctx, familiar, api.ImageRemoveOptions{})
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if err := n.propose(ctx, catalog.DropRef{Name: familiar}); err != nil {
		return err
	}
	return n.a.images.Unkeep(ctx, name.String(), "")
}

// follow lets go of what is kept here under names that mean something else in the
// cluster by now, and tells a cluster of names that it doesn't know.
func (n *imageNames) follow(ctx context.Context) error {
	t := time.NewTicker(followEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
		for _, k := range n.a.images.Kept() {
			if err := n.compare(ctx, k); err != nil && ctx.Err() == nil {
				n.a.log.Debug("a kept name was not compared with the catalog", "name", k.Name, "err", err)
			}
		}
	}
}

func (n *imageNames) compare(ctx context.Context, k image.Kept) error {
	name, err := reference.ParseNormalizedNamed(k.Name)
	if err != nil {
		return err
	}
	familiar, member := reference.FamiliarString(name), n.a.cluster.Member()
	if member {
		if err := n.sync(ctx); err != nil {
			return err
		}
		now := n.meaning(ctx, n.a.front.View(), familiar)
		if now != k.Target && (now != "" || k.Shared) {
			return n.a.images.Unkeep(ctx, k.Name, k.Target)
		}
		if now == "" {
			if err := n.propose(ctx, catalog.SetRef{Ref: catalog.Ref{Name: familiar, Digest: k.Target.String()}}); err != nil {
				return err
			}
		}
	}
	if k.Shared == member {
		return nil
	}
	k.Shared = member
	return n.a.images.Keep(ctx, k)
}

// propose tells the cluster, if there is one.
func (n *imageNames) propose(ctx context.Context, c catalog.Command) error {
	if !n.a.cluster.Member() {
		return nil
	}
	_, err := n.a.cluster.Store().Propose(ctx, c)
	return err
}
