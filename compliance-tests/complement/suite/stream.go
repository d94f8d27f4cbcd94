package suite

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// event is a line of test2json's output; the fields that are not read here are left out.
type event struct {
	Action string
	Test   string
}

// progress follows one run of a test binary: what has an outcome, and what is running since when.
type progress struct {
	mu       sync.Mutex
	outcomes map[string]Outcome
	running  map[string]time.Time // top-level tests that are not paused
	begun    map[string]bool      // tests and subtests
}

func newProgress() *progress {
	return &progress{outcomes: map[string]Outcome{}, running: map[string]time.Time{}, begun: map[string]bool{}}
}

// follow reads test2json's output until its end.
func (p *progress) follow(r io.Reader) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if bad := json.Unmarshal(line, &e); bad != nil {
				return fmt.Errorf("reading test events: %w in %q", bad, line)
			}
			p.note(e, time.Now())
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading test events: %w", err)
		}
	}
}

func (p *progress) note(e event, now time.Time) {
	if e.Test == "" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	top := !strings.Contains(e.Test, "/")
	switch e.Action {
	case "run", "cont":
		p.begun[e.Test] = true
		if top {
			p.running[e.Test] = now
		}
	case "pause":
		delete(p.running, e.Test)
	case "pass", "fail", "skip":
		p.outcomes[e.Test] = Outcome(strings.ToUpper(e.Action))
		delete(p.running, e.Test)
	}
}

// overdue is a top-level test that has been running for longer than the limit, if there is one.
func (p *progress) overdue(limit time.Duration, now time.Time) (string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for test, since := range p.running {
		if now.Sub(since) > limit {
			return test, true
		}
	}
	return "", false
}

// finish gives a verdict on everything that was begun when the binary ended: a test that has no outcome
// and was not merely waiting for its turn has failed, and so have its unfinished subtests.
func (p *progress) finish() map[string]Outcome {
	p.mu.Lock()
	defer p.mu.Unlock()
	for test := range p.begun {
		top, _, _ := strings.Cut(test, "/")
		_, cutOff := p.running[top]
		if _, done := p.outcomes[test]; !done && cutOff {
			p.outcomes[test] = Fail
		}
	}
	return p.outcomes
}
