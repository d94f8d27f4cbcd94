package suite

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Outcome of a test or subtest.
type Outcome string

// The three outcomes; a test that was cut off by the time limit or by a crash has failed.
const (
	Pass Outcome = "PASS"
	Fail Outcome = "FAIL"
	Skip Outcome = "SKIP"
)

// Results are outcomes by full name: `tests/csapi/TestLogin/parallel/…`.
type Results map[string]Outcome

// Add records the outcome of a test of a package.
func (r Results) Add(pkg, test string, outcome Outcome) { r[pkg+"/"+test] = outcome }

// WriteTo writes `OUTCOME<TAB>NAME` lines, sorted by name.
func (r Results) WriteTo(w io.Writer) (int64, error) {
	var text strings.Builder
	for _, name := range sortedKeys(r) {
		fmt.Fprintf(&text, "%s\t%s\n", r[name], name)
	}
	n, err := io.WriteString(w, text.String())
	return int64(n), err
}

// Expectations are the known failures: full name to reason. A line stands for the named test and for
// all its subtests.
type Expectations map[string]string

// ReadExpectations reads `NAME<TAB>REASON` lines; empty lines and lines starting with # are skipped.
func ReadExpectations(r io.Reader) (Expectations, error) {
	known := Expectations{}
	err := eachLine(r, func(number int, line string) error {
		name, reason, found := strings.Cut(line, "\t")
		if !found || strings.TrimSpace(reason) == "" {
			return fmt.Errorf("line %d: want NAME<TAB>REASON, got %q", number, line)
		}
		if _, twice := known[name]; twice {
			return fmt.Errorf("line %d: %s stands there twice", number, name)
		}
		known[name] = reason
		return nil
	})
	return known, err
}

func (e Expectations) covers(name string) bool {
	for {
		if _, found := e[name]; found {
			return true
		}
		cut := strings.LastIndexByte(name, '/')
		if cut < 0 {
			return false
		}
		name = name[:cut]
	}
}

// Verdict is what differs between results and expectations, each list sorted.
type Verdict struct {
	// UnexpectedFailures failed, and no line covers them. A test that failed only through its
	// subtests is not among them: they are.
	UnexpectedFailures []string
	// UnexpectedPasses have a line although they passed or were skipped.
	UnexpectedPasses []string
	// Unknown have a line, belong to a test that ran, and do not exist.
	Unknown []string
}

// Judge compares. Lines of tests that were not selected for this run are left alone.
func Judge(results Results, known Expectations) Verdict {
	var verdict Verdict
	failedBelow := map[string]bool{}
	for name, outcome := range results {
		if outcome != Fail {
			continue
		}
		for parent := name; ; {
			cut := strings.LastIndexByte(parent, '/')
			if cut < 0 {
				break
			}
			parent = parent[:cut]
			failedBelow[parent] = true
		}
	}
	for _, name := range sortedKeys(results) {
		if results[name] == Fail && !failedBelow[name] && !known.covers(name) {
			verdict.UnexpectedFailures = append(verdict.UnexpectedFailures, name)
		}
	}
	for _, name := range sortedKeys(known) {
		outcome, ran := results[name]
		switch {
		case ran && outcome != Fail:
			verdict.UnexpectedPasses = append(verdict.UnexpectedPasses, name)
		case !ran && parentPassed(results, name):
			verdict.Unknown = append(verdict.Unknown, name)
		}
	}
	return verdict
}

// parentPassed tells whether a test above the named one ran to its end: then the named one would have
// run, too, if it existed.
func parentPassed(results Results, name string) bool {
	for {
		cut := strings.LastIndexByte(name, '/')
		if cut < 0 {
			return false
		}
		name = name[:cut]
		if outcome, ran := results[name]; ran {
			return outcome == Pass
		}
	}
}

// Good tells that there is nothing to report.
func (v Verdict) Good() bool {
	return len(v.UnexpectedFailures) == 0 && len(v.UnexpectedPasses) == 0 && len(v.Unknown) == 0
}

// ReadTests reads `PACKAGE<TAB>TEST` lines into full names.
func ReadTests(r io.Reader) (map[string]bool, error) {
	tests := map[string]bool{}
	err := eachLine(r, func(number int, line string) error {
		pkg, test, found := strings.Cut(line, "\t")
		if !found {
			return fmt.Errorf("line %d: want PACKAGE<TAB>TEST, got %q", number, line)
		}
		tests[pkg+"/"+test] = true
		return nil
	})
	return tests, err
}

func eachLine(r io.Reader, do func(number int, line string) error) error {
	scanner := bufio.NewScanner(r)
	for number := 1; scanner.Scan(); number++ {
		line := scanner.Text()
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if err := do(number, line); err != nil {
			return err
		}
	}
	return scanner.Err()
}

func sortedKeys[V any, M ~map[string]V](m M) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
