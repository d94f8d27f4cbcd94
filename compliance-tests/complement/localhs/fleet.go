// Package localhs runs homeservers as processes of this machine, for black-box tests that would
// otherwise ask for containers: several servers that reach each other by name, with certificates of
// one authority, that can be stopped, started again on their data, paused and killed.
//
// It knows nothing of the tests, and of the server only its configuration file (guildhall.toml.tmpl)
// and `--config`. Server names are hs1 to hs9 without a port, as the Matrix suites hard-code them, so
// each fleet takes a block of loopback addresses (Linux: the whole of 127.0.0.0/8) and tells its
// servers a table of names.
package localhs

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Settings are common to all servers of a fleet.
type Settings struct {
	// Binary is the homeserver's executable.
	Binary string
	// Dir is an existing directory in which the fleet makes its own.
	Dir string
	// Authority signs the servers' certificates.
	Authority *Authority
	// ReadyAfter is how long a server may take to answer after its start.
	ReadyAfter time.Duration
}

// Options are of one server.
type Options struct {
	// Appservices are registration files, by the ID of the application service.
	Appservices map[string]string
	// Data is a directory made by [Server.SaveData] to begin with; none when empty.
	Data string
}

// Fleet is a set of servers that can reach each other, and nobody else's.
type Fleet struct {
	settings Settings
	dir      string
	block    *block

	mu      sync.Mutex
	servers map[string]*Server
}

// NewFleet makes a fleet without servers. Close it in the end.
func NewFleet(settings Settings) (*Fleet, error) {
	block, err := leaseBlock()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(settings.Dir, "fleet-")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making the fleet's directory: %w", err), block.release())
	}
	return &Fleet{settings: settings, dir: dir, block: block, servers: map[string]*Server{}}, nil
}

// Launch adds a server to the fleet and starts it.
//
// The server is returned also when only its start failed: its log tells why.
func (f *Fleet) Launch(name string, options Options) (*Server, error) {
	ip, err := f.block.ip(name)
	if err != nil {
		return nil, err
	}
	server := &Server{
		name:       name,
		binary:     f.settings.Binary,
		dir:        filepath.Join(f.dir, name),
		ip:         ip,
		readyAfter: f.settings.ReadyAfter,
	}
	f.mu.Lock()
	if _, taken := f.servers[name]; taken {
		f.mu.Unlock()
		return nil, fmt.Errorf("%s: already in the fleet", name)
	}
	f.servers[name] = server
	f.mu.Unlock()
	if err := f.prepare(server, options); err != nil {
		return nil, err
	}
	return server, server.Start()
}

// prepare fills the server's directory with all that it reads at its start.
func (f *Fleet) prepare(s *Server, options Options) error {
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return fmt.Errorf("%s: making its directory: %w", s.name, err)
	}
	if options.Data != "" {
		if err := copyDir(s.dataDir(), options.Data); err != nil {
			return err
		}
	} else if err := os.Mkdir(s.dataDir(), 0o700); err != nil {
		return fmt.Errorf("%s: making its data directory: %w", s.name, err)
	}
	certificate, key, err := f.settings.Authority.issue(s.name)
	if err != nil {
		return err
	}
	files := map[string][]byte{
		"tls.crt": certificate,
		"tls.key": key,
		"ca.crt":  f.settings.Authority.PEM(),
	}
	values := configValues{
		ServerName:        s.name,
		DataDir:           s.dataDir(),
		ClientAddress:     net.JoinHostPort(s.ip, strconv.Itoa(clientPort)),
		FederationAddress: net.JoinHostPort(s.ip, strconv.Itoa(federationPort)),
		CertificateFile:   filepath.Join(s.dir, "tls.crt"),
		KeyFile:           filepath.Join(s.dir, "tls.key"),
		AuthorityFile:     filepath.Join(s.dir, "ca.crt"),
		SharedSecret:      SharedSecret,
		Addresses:         f.block.table(),
	}
	for i, id := range slices.Sorted(maps.Keys(options.Appservices)) {
		file := fmt.Sprintf("appservice-%d.yaml", i)
		files[file] = []byte(options.Appservices[id])
		values.Appservices = append(values.Appservices, filepath.Join(s.dir, file))
	}
	config, err := renderConfig(values)
	if err != nil {
		return err
	}
	files[filepath.Base(s.configFile())] = config
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(s.dir, name), content, 0o600); err != nil {
			return fmt.Errorf("%s: writing %s: %w", s.name, name, err)
		}
	}
	return nil
}

// Servers are the servers launched so far, by name.
func (f *Fleet) Servers() []*Server {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.SortedFunc(maps.Values(f.servers), func(a, b *Server) int {
		return strings.Compare(a.name, b.name)
	})
}

// KeepLogs copies the servers' logs into an existing directory, named `PREFIX.SERVER.log`.
func (f *Fleet) KeepLogs(dir, prefix string) error {
	prefix = strings.ReplaceAll(prefix, "/", "_")
	for _, server := range f.Servers() {
		log, err := os.ReadFile(server.LogFile())
		if errors.Is(err, os.ErrNotExist) {
			continue // it was never started
		}
		if err != nil {
			return fmt.Errorf("%s: reading its log: %w", server.name, err)
		}
		if err := os.WriteFile(filepath.Join(dir, prefix+"."+server.name+".log"), log, 0o600); err != nil {
			return fmt.Errorf("%s: keeping its log: %w", server.name, err)
		}
	}
	return nil
}

// Close kills all servers and removes what they wrote.
func (f *Fleet) Close() error {
	for _, server := range f.Servers() {
		server.Kill()
	}
	return errors.Join(os.RemoveAll(f.dir), f.block.release())
}
