// Command complement runs the compiled black-box suite against a guildhall binary and compares the
// outcomes with the list of known failures. README.md beside run.sh says how to use it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"guildhall/complement/suite"
)

const (
	expectedFailuresFile = "expected-failures.txt"
	singleServerFile     = "single-server-tests.txt"
)

// options are the command line and the environment.
type options struct {
	packages     []string
	top          *regexp.Regexp
	subtests     string
	singleServer bool
	list         bool
	out          string
	limit        time.Duration
	parallel     int
	binaries     string
	server       string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	good, err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "complement:", err)
		os.Exit(2)
	}
	if !good {
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("run.sh", flag.ContinueOnError)
	expression := flags.String("run", "", "run only tests that match, as for go test")
	flags.BoolVar(&o.singleServer, "single-server", false, "only the tests of "+singleServerFile)
	flags.BoolVar(&o.list, "list", false, "print the selected tests and run nothing")
	flags.StringVar(&o.out, "out", "", "directory for results and logs (default: a new one in the temporary directory)")
	flags.DurationVar(&o.limit, "limit", 2*time.Minute, "how long one top-level test may run")
	flags.IntVar(&o.parallel, "parallel", 1, "how many tests that allow it may run at once")
	for len(args) > 0 {
		if err := flags.Parse(args); err != nil {
			return o, err
		}
		if args = flags.Args(); len(args) > 0 {
			o.packages = append(o.packages, args[0])
			args = args[1:]
		}
	}
	top, subtests, _ := strings.Cut(*expression, "/")
	var err error
	if o.top, err = regexp.Compile(top); err != nil {
		return o, fmt.Errorf("-run: %w", err)
	}
	o.subtests = subtests
	if o.binaries = os.Getenv("COMPLEMENT_BINARIES"); o.binaries == "" {
		return o, errors.New("COMPLEMENT_BINARIES is not set: the directory with the suite's test binaries")
	}
	o.binaries = fromCaller(o.binaries)
	if o.list {
		return o, nil
	}
	if o.server = os.Getenv("GUILDHALL_BIN"); o.server == "" {
		return o, errors.New("GUILDHALL_BIN is not set: the homeserver to test")
	}
	if o.server, err = exec.LookPath(fromCaller(o.server)); err != nil {
		return o, fmt.Errorf("GUILDHALL_BIN: %w", err)
	}
	return o, nil
}

// fromCaller makes a path absolute, seen from where run.sh was called: it changes the directory itself.
func fromCaller(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(os.Getenv("COMPLEMENT_CALLED_FROM"), path)
}

func run(ctx context.Context) (bool, error) {
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	known, err := readFile(expectedFailuresFile, suite.ReadExpectations)
	if err != nil {
		return false, err
	}
	only := map[string]bool{}
	if o.singleServer {
		if only, err = readFile(singleServerFile, suite.ReadTests); err != nil {
			return false, err
		}
	}
	binaries, err := suite.FindBinaries(o.binaries)
	if err != nil {
		return false, err
	}
	// the image is asked for, and not used; under the host name the servers reach what the tests listen on
	env := append(os.Environ(), "COMPLEMENT_BASE_IMAGE=none", "COMPLEMENT_HOSTNAME_RUNNING_COMPLEMENT=localhost")
	selected, err := selectTests(o, binaries, only, env)
	if err != nil {
		return false, err
	}
	if o.list {
		for _, binary := range binaries {
			for _, test := range selected[binary.Package] {
				fmt.Printf("%s\t%s\n", binary.Package, test)
			}
		}
		return true, nil
	}
	return execute(ctx, o, binaries, selected, known, env)
}

// selectTests are the top-level tests to run, by package.
func selectTests(o options, binaries []suite.Binary, only map[string]bool, env []string) (map[string][]string, error) {
	selected := map[string][]string{}
	missing := map[string]bool{}
	for name := range only {
		missing[name] = true
	}
	found := false
	for _, binary := range binaries {
		tests, err := binary.Tests(env)
		if err != nil {
			return nil, err
		}
		for _, test := range tests {
			name := binary.Package + "/" + test
			delete(missing, name)
			if o.singleServer && !only[name] || !o.top.MatchString(test) || !wanted(o.packages, binary.Package) {
				continue
			}
			selected[binary.Package] = append(selected[binary.Package], test)
			found = true
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("%s names tests that no binary has: %v", singleServerFile, missing)
	}
	if !found {
		return nil, errors.New("no test is selected")
	}
	return selected, nil
}

// wanted tells whether a package is named by its path or the last part of it.
func wanted(packages []string, pkg string) bool {
	return len(packages) == 0 || slices.Contains(packages, pkg) || slices.Contains(packages, filepath.Base(pkg))
}

func execute(ctx context.Context, o options, binaries []suite.Binary, selected map[string][]string,
	known suite.Expectations, env []string) (bool, error) {
	out, err := outputDir(o.out)
	if err != nil {
		return false, err
	}
	runs, err := os.MkdirTemp("", "complement-runs-")
	if err != nil {
		return false, fmt.Errorf("making a directory for the servers: %w", err)
	}
	defer os.RemoveAll(runs)
	env = append(env, "GUILDHALL_BIN="+o.server, "LOCALHS_RUNS_DIR="+runs,
		"LOCALHS_LOGS_DIR="+filepath.Join(out, "servers"))
	results := suite.Results{}
	for _, binary := range binaries {
		tests := selected[binary.Package]
		if len(tests) == 0 {
			continue
		}
		began := time.Now()
		part, err := runPackage(ctx, binary, suite.Run{
			Env: env, Dir: runs, Tests: tests, Subtests: o.subtests, Parallel: o.parallel, Limit: o.limit,
		}, filepath.Join(out, strings.ReplaceAll(binary.Package, "/", ".")+".txt"))
		for name, outcome := range part {
			results[name] = outcome
		}
		if err != nil {
			return false, errors.Join(err, writeResults(out, results))
		}
		fmt.Printf("%-16s %s in %s\n", binary.Package, counts(part), time.Since(began).Round(time.Second))
	}
	if err := writeResults(out, results); err != nil {
		return false, err
	}
	fmt.Printf("results, output and server logs are in %s\n", out)
	verdict := suite.Judge(results, known)
	report(verdict)
	fmt.Println(closingLine(results))
	return verdict.Good(), nil
}

func runPackage(ctx context.Context, binary suite.Binary, run suite.Run, outputFile string) (suite.Results, error) {
	output, err := os.Create(outputFile)
	if err != nil {
		return nil, fmt.Errorf("making the output file of %s: %w", binary.Package, err)
	}
	run.Output = output
	results, err := binary.Run(ctx, run)
	return results, errors.Join(err, output.Close())
}

func report(verdict suite.Verdict) {
	for _, name := range verdict.UnexpectedFailures {
		fmt.Printf("unexpected failure: %s\n", name)
	}
	for _, name := range verdict.UnexpectedPasses {
		fmt.Printf("unexpected pass, remove its line from %s: %s\n", expectedFailuresFile, name)
	}
	for _, name := range verdict.Unknown {
		fmt.Printf("there is no such test, remove its line from %s: %s\n", expectedFailuresFile, name)
	}
}

// counts are of top-level tests, then of subtests.
func counts(results suite.Results) string {
	top, sub := map[suite.Outcome]int{}, map[suite.Outcome]int{}
	for name, outcome := range results {
		if isTopLevel(name) {
			top[outcome]++
		} else {
			sub[outcome]++
		}
	}
	return fmt.Sprintf("%d passed, %d failed, %d skipped (subtests: %d, %d, %d)",
		top[suite.Pass], top[suite.Fail], top[suite.Skip], sub[suite.Pass], sub[suite.Fail], sub[suite.Skip])
}

// closingLine counts top-level tests, in a form that test harnesses read.
func closingLine(results suite.Results) string {
	top := map[suite.Outcome]int{}
	for name, outcome := range results {
		if isTopLevel(name) {
			top[outcome]++
		}
	}
	return fmt.Sprintf("%d passed, %d failed, %d skipped", top[suite.Pass], top[suite.Fail], top[suite.Skip])
}

// isTopLevel tells whether nothing but a package stands before the test's name.
func isTopLevel(name string) bool {
	_, test, found := strings.Cut(name, "/Test")
	return found && !strings.Contains(test, "/")
}

func outputDir(dir string) (string, error) {
	if dir == "" {
		made, err := os.MkdirTemp("", "complement-results-")
		if err != nil {
			return "", fmt.Errorf("making the output directory: %w", err)
		}
		dir = made
	}
	dir = fromCaller(dir)
	if err := os.MkdirAll(filepath.Join(dir, "servers"), 0o755); err != nil {
		return "", fmt.Errorf("making the output directory: %w", err)
	}
	return dir, nil
}

func writeResults(dir string, results suite.Results) error {
	file, err := os.Create(filepath.Join(dir, "results.txt"))
	if err != nil {
		return fmt.Errorf("writing the results: %w", err)
	}
	_, err = results.WriteTo(file)
	return errors.Join(err, file.Close())
}

func readFile[T any](path string, read func(io.Reader) (T, error)) (T, error) {
	var none T
	file, err := os.Open(path)
	if err != nil {
		return none, err
	}
	defer file.Close()
	value, err := read(file)
	if err != nil {
		return none, fmt.Errorf("%s: %w", path, err)
	}
	return value, nil
}
