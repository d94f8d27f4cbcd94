// Package suite runs test binaries of a Go test suite against a homeserver, with a time limit for each
// test, and compares the outcomes with a list of known failures.
//
// It builds nothing: the binaries come from outside. A test that hangs or crashes the binary costs only
// itself, as the tests behind it are run again in a fresh process.
package suite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// limitPoll is the pause between two looks at the time limit.
const limitPoll = 200 * time.Millisecond

// Binary is a compiled test package.
type Binary struct {
	// Path of the executable.
	Path string
	// Package it was made from, such as tests/csapi.
	Package string
}

// FindBinaries lists the `*.test` files of a directory; in their names, dots stand for the slashes of
// the package.
func FindBinaries(dir string) ([]Binary, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.test"))
	if err != nil {
		return nil, fmt.Errorf("looking for test binaries: %w", err)
	}
	var binaries []Binary
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".test")
		binaries = append(binaries, Binary{Path: path, Package: strings.ReplaceAll(name, ".", "/")})
	}
	return binaries, nil
}

// Tests are the names of the top-level tests in the binary.
func (b Binary) Tests(env []string) ([]string, error) {
	cmd := exec.Command(b.Path, "-test.list", ".")
	cmd.Env = env
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: listing its tests: %w: %s", b.Package, err, stderr.String())
	}
	var tests []string
	for line := range strings.Lines(string(out)) {
		if name := strings.TrimSpace(line); strings.HasPrefix(name, "Test") {
			tests = append(tests, name)
		}
	}
	return tests, nil
}

// Run is how to run a binary.
type Run struct {
	// Env is the environment of the test process.
	Env []string
	// Dir is its working directory.
	Dir string
	// Tests are the top-level tests to run.
	Tests []string
	// Subtests is the rest of a `-run` expression behind the first slash; empty for all.
	Subtests string
	// Parallel is how many tests that allow it may run at once.
	Parallel int
	// Limit is how long one top-level test may run.
	Limit time.Duration
	// Output gets all that the tests print.
	Output io.Writer
}

// Run runs the tests and returns an outcome for each of them and for the subtests they reached.
func (b Binary) Run(ctx context.Context, run Run) (Results, error) {
	results := Results{}
	left := slices.Clone(run.Tests)
	for len(left) > 0 {
		outcomes, err := b.attempt(ctx, run, left)
		if err != nil {
			return results, err
		}
		for test, outcome := range outcomes {
			results.Add(b.Package, test, outcome)
		}
		before := len(left)
		left = slices.DeleteFunc(left, func(test string) bool {
			_, done := outcomes[test]
			return done
		})
		if len(left) == before {
			return results, fmt.Errorf("%s: ended without running %s; see its output", b.Package, left[0])
		}
	}
	return results, nil
}

// attempt runs the tests in one process, until it ends or a test is over its time.
func (b Binary) attempt(ctx context.Context, run Run, tests []string) (map[string]Outcome, error) {
	var names []string
	for _, test := range tests {
		names = append(names, regexp.QuoteMeta(test))
	}
	pattern := "^(" + strings.Join(names, "|") + ")$"
	if run.Subtests != "" {
		pattern += "/" + run.Subtests
	}
	cmd := exec.Command(b.Path, "-test.v=test2json", "-test.run", pattern,
		"-test.parallel", strconv.Itoa(run.Parallel), "-test.timeout", "0")
	cmd.Env, cmd.Dir = run.Env, run.Dir
	// a group of its own, so that ending it ends the servers it started, too
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}

	printed := &lockedWriter{to: run.Output}
	converter := exec.Command("go", "tool", "test2json")
	input, output, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("making a pipe: %w", err)
	}
	defer input.Close()
	cmd.Stdout, cmd.Stderr = output, output
	converter.Stdin = io.TeeReader(input, printed)
	converter.Stderr = printed
	events, err := converter.StdoutPipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making a pipe: %w", err), output.Close())
	}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: starting: %w", b.Package, err), output.Close())
	}
	killGroup := func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // it may have ended
	defer killGroup()
	if err := output.Close(); err != nil {
		return nil, fmt.Errorf("closing the pipe: %w", err)
	}
	if err := converter.Start(); err != nil {
		return nil, fmt.Errorf("starting test2json: %w", err)
	}

	progress := newProgress()
	followed := make(chan error, 1)
	go func() { followed <- progress.follow(events) }()
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // a failed test makes an exit status that the events tell better
		close(ended)
	}()
	for running := true; running; {
		select {
		case <-ended:
			running = false
		case <-ctx.Done():
			killGroup()
			<-ended
			return nil, errors.Join(ctx.Err(), <-followed, converter.Wait())
		case <-time.After(limitPoll):
			if test, late := progress.overdue(run.Limit, time.Now()); late {
				fmt.Fprintf(printed, "\n%s: %s is over the limit of %s, killed\n", b.Package, test, run.Limit)
				killGroup()
			}
		}
	}
	killGroup() // servers that it left behind hold the pipe open
	if err := <-followed; err != nil {
		return nil, err
	}
	if err := converter.Wait(); err != nil {
		return nil, fmt.Errorf("test2json: %w", err)
	}
	return progress.finish(), nil
}

// lockedWriter takes what several goroutines print.
type lockedWriter struct {
	mu sync.Mutex
	to io.Writer
}

func (w *lockedWriter) Write(text []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.to.Write(text)
}
