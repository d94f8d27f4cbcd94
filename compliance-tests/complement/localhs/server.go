package localhs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// stopWithin is what the server promises: after SIGTERM it has ended by then.
	stopWithin = 10 * time.Second
	// pauseWithin is far more than a thread needs to notice a signal.
	pauseWithin = 10 * time.Second
	// ownVariables are settings of the server: what the caller has there must not change it.
	ownVariables = "GUILDHALL_"
	// readyPoll is the pause between two looks at a starting server.
	readyPoll = 20 * time.Millisecond
)

// Server is one homeserver: a directory that outlives its processes, and at most one process.
type Server struct {
	name       string
	binary     string
	dir        string
	ip         string
	readyAfter time.Duration

	mu      sync.Mutex
	process *process
}

// process is a started homeserver; exited is closed once it has ended and state is set.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{}
	state  string
}

// Name is the server name, such as hs1.
func (s *Server) Name() string { return s.name }

// ClientURL is where the client-server API answers, the same over restarts.
func (s *Server) ClientURL() string { return fmt.Sprintf("http://%s:%d", s.ip, clientPort) }

// FederationURL is where the federation API answers over TLS, with a certificate for [Server.Name].
func (s *Server) FederationURL() string { return fmt.Sprintf("https://%s:%d", s.ip, federationPort) }

// LogFile holds what all processes of this server have printed.
func (s *Server) LogFile() string { return filepath.Join(s.dir, "log") }

func (s *Server) dataDir() string    { return filepath.Join(s.dir, "data") }
func (s *Server) configFile() string { return filepath.Join(s.dir, "guildhall.toml") }

// Start runs the server on its data and waits until `/_matrix/client/versions` answers 200 and the
// federation port is open.
//
// Fails when it runs already, when it ends before it answers, and when it takes too long; in the
// last case it is killed.
func (s *Server) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil && !s.process.ended() {
		return fmt.Errorf("%s: already running", s.name)
	}
	log, err := os.OpenFile(s.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("%s: opening its log: %w", s.name, err)
	}
	defer log.Close() // the child has its own copy
	cmd := exec.Command(s.binary, "--config", s.configFile())
	cmd.Dir = s.dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = slices.DeleteFunc(os.Environ(), func(variable string) bool {
		return strings.HasPrefix(variable, ownVariables)
	})
	// a test run that is killed must not leave servers behind
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s: starting %s: %w", s.name, s.binary, err)
	}
	p := &process{cmd: cmd, exited: make(chan struct{})}
	go func() {
		// how it ended is in the state; the error says the same
		_ = cmd.Wait()
		p.state = cmd.ProcessState.String()
		close(p.exited)
	}()
	s.process = p
	return s.awaitReady(p)
}

func (s *Server) awaitReady(p *process) error {
	client := &http.Client{Timeout: time.Second}
	url := s.ClientURL() + "/_matrix/client/versions"
	last := errors.New("not asked yet")
	for deadline := time.Now().Add(s.readyAfter); time.Now().Before(deadline); {
		if p.ended() {
			return fmt.Errorf("%s: ended before it answered (%s)", s.name, p.state)
		}
		if last = errors.Join(askVersions(client, url), dial(s.ip, federationPort)); last == nil {
			return nil
		}
		select {
		case <-p.exited:
		case <-time.After(readyPoll):
		}
	}
	p.kill()
	return fmt.Errorf("%s: not ready after %s: %w", s.name, s.readyAfter, last)
}

func askVersions(client *http.Client, url string) error {
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, response.Status)
	}
	return nil
}

func dial(ip string, port int) error {
	connection, err := net.DialTimeout("tcp", net.JoinHostPort(ip, strconv.Itoa(port)), time.Second)
	if err != nil {
		return err
	}
	return connection.Close()
}

// Stop asks the server to end (SIGTERM) and waits for it; its data stays for the next Start.
//
// Fails when the server was not running, and when it had to be killed because it did not end in time.
func (s *Server) Stop() error {
	p, err := s.running()
	if err != nil {
		return err
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("%s: sending SIGTERM: %w", s.name, err)
	}
	select {
	case <-p.exited:
		return nil
	case <-time.After(stopWithin):
		p.kill()
		return fmt.Errorf("%s: did not end within %s of SIGTERM and was killed", s.name, stopWithin)
	}
}

// Kill ends the server as a power cut would (SIGKILL); nothing happens when it does not run.
func (s *Server) Kill() {
	s.mu.Lock()
	p := s.process
	s.mu.Unlock()
	if p != nil {
		p.kill()
	}
}

// Pause freezes the server with its memory and its connections (SIGSTOP), and waits until it is frozen:
// a busy thread runs on for a while after the signal.
func (s *Server) Pause() error {
	if err := s.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	for deadline := time.Now().Add(pauseWithin); time.Now().Before(deadline); time.Sleep(readyPoll) {
		frozen, err := s.frozen()
		if frozen || err != nil {
			return err
		}
	}
	return fmt.Errorf("%s: still runs %s after SIGSTOP", s.name, pauseWithin)
}

// frozen tells whether all threads are in state T, stopped by a signal.
func (s *Server) frozen() (bool, error) {
	p, err := s.running()
	if err != nil {
		return false, err
	}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.cmd.Process.Pid))
	if err != nil {
		return false, fmt.Errorf("%s: listing its threads: %w", s.name, err)
	}
	for _, file := range files {
		stat, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // this thread has ended
		}
		if err != nil {
			return false, fmt.Errorf("%s: asking for a thread's state: %w", s.name, err)
		}
		// the state stands behind the name, which is in parentheses and may hold anything
		if end := bytes.LastIndexByte(stat, ')'); end < 0 || !bytes.HasPrefix(stat[end+1:], []byte(" T")) {
			return false, nil
		}
	}
	return len(files) > 0, nil
}

// Unpause lets a paused server go on (SIGCONT).
func (s *Server) Unpause() error { return s.signal(syscall.SIGCONT) }

// SaveData copies the data of a stopped server to a directory that does not exist yet, to be given
// to another server as [Options.Data].
func (s *Server) SaveData(dir string) error {
	if _, err := s.running(); err == nil {
		return fmt.Errorf("%s: still running, its data may change under the copy", s.name)
	}
	return copyDir(dir, s.dataDir())
}

func (s *Server) signal(signal os.Signal) error {
	p, err := s.running()
	if err != nil {
		return err
	}
	if err := p.cmd.Process.Signal(signal); err != nil {
		return fmt.Errorf("%s: sending %s: %w", s.name, signal, err)
	}
	return nil
}

func (s *Server) running() (*process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil || s.process.ended() {
		return nil, fmt.Errorf("%s: not running", s.name)
	}
	return s.process, nil
}

func (p *process) ended() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

func (p *process) kill() {
	// the one way this fails is that the process has ended
	_ = p.cmd.Process.Kill()
	<-p.exited
}

func copyDir(to, from string) error {
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return fmt.Errorf("copying %s to %s: %w", from, to, err)
	}
	return nil
}
