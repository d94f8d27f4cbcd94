package localhs

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
)

const (
	// clientPort and federationPort are the ports that Matrix reserves.
	clientPort     = 8008
	federationPort = 8448
	// serversMax is how many servers a fleet can have: hs1 to hs9.
	serversMax = 9
	// leaseHost is the host of a block whose federation port marks the block as taken.
	leaseHost = 254
	// leaseTriesMax bounds the search for a free block among some two million.
	leaseTriesMax = 64
)

// block is 127.x.y.0/24, leased to one fleet: server hsN has host N. Loopback addresses of its own
// keep a server's address the same over restarts and known before it starts, and let any number of
// fleets run side by side, also from several processes.
type block struct {
	prefix string
	lease  net.Listener
}

func leaseBlock() (*block, error) {
	var lastErr error
	for range leaseTriesMax {
		// 127.0.0.0/16 is left alone: people and other tests use it
		prefix := fmt.Sprintf("127.%d.%d.", 1+rand.IntN(254), rand.IntN(256))
		lease, err := net.Listen("tcp", (&block{prefix: prefix}).federationAddress(leaseHost))
		if err == nil {
			return &block{prefix: prefix, lease: lease}, nil
		}
		lastErr = err
	}
	return nil, fmt.Errorf("no free block of loopback addresses in %d tries: %w", leaseTriesMax, lastErr)
}

func (b *block) release() error { return b.lease.Close() }

// ip is the address of the server with that name.
func (b *block) ip(serverName string) (string, error) {
	number, err := strconv.Atoi(strings.TrimPrefix(serverName, "hs"))
	if err != nil || !strings.HasPrefix(serverName, "hs") || number < 1 || number > serversMax {
		return "", fmt.Errorf("server name %q: want hs1 to hs%d", serverName, serversMax)
	}
	return b.prefix + strconv.Itoa(number), nil
}

// table is what every server of the fleet is told: where the servers of the fleet, started or not, are
// reached by other servers.
func (b *block) table() []tableEntry {
	var entries []tableEntry
	for number := 1; number <= serversMax; number++ {
		name := "hs" + strconv.Itoa(number)
		entries = append(entries, tableEntry{Name: name, Address: b.federationAddress(number)})
	}
	return entries
}

func (b *block) federationAddress(number int) string {
	return net.JoinHostPort(b.prefix+strconv.Itoa(number), strconv.Itoa(federationPort))
}

// tableEntry says that a server name stands for an address with its port.
type tableEntry struct{ Name, Address string }
