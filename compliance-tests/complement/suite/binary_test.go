package suite

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary runs itself as the suite under test: the tests named TestPlay… do something only then.
const playEnv = "SUITE_TEST_PLAY"

func play(t *testing.T) {
	t.Helper()
	if os.Getenv(playEnv) == "" {
		t.Skip("only played for other tests")
	}
}

func TestPlayPass(t *testing.T) {
	play(t)
	t.Run("a pass", func(t *testing.T) {})
	t.Run("a skip", func(t *testing.T) { t.Skip("not today") })
}

func TestPlayFail(t *testing.T) {
	play(t)
	t.Run("a failure", func(t *testing.T) { t.Fatal("as wanted") })
}

func TestPlayHang(t *testing.T) {
	play(t)
	t.Run("before", func(t *testing.T) {})
	t.Run("hanging", func(t *testing.T) { time.Sleep(time.Hour) })
}

func TestPlayCrash(t *testing.T) {
	play(t)
	go panic("as wanted")
	time.Sleep(time.Hour)
}

func TestPlayParallel(t *testing.T) {
	play(t)
	t.Parallel()
}

func TestPlayExit(t *testing.T) {
	play(t)
	syscall.Exit(0)
}

func runSelf(t *testing.T, tests ...string) (Results, string, error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var output strings.Builder
	results, err := Binary{Path: self, Package: "p"}.Run(context.Background(), Run{
		Env: append(os.Environ(), playEnv+"=1"), Dir: t.TempDir(), Tests: tests,
		Parallel: 1, Limit: 2 * time.Second, Output: &output,
	})
	return results, output.String(), err
}

func TestAHangingOrCrashingTestCostsOnlyItself(t *testing.T) {
	results, output, err := runSelf(t, "TestPlayCrash", "TestPlayHang", "TestPlayParallel", "TestPlayPass", "TestPlayFail")
	if err != nil {
		t.Fatal(err)
	}
	want := Results{
		"p/TestPlayCrash": Fail,
		"p/TestPlayHang":  Fail, "p/TestPlayHang/before": Pass, "p/TestPlayHang/hanging": Fail,
		"p/TestPlayParallel": Pass,
		"p/TestPlayPass":     Pass, "p/TestPlayPass/a_pass": Pass, "p/TestPlayPass/a_skip": Skip,
		"p/TestPlayFail": Fail, "p/TestPlayFail/a_failure": Fail,
	}
	if !maps.Equal(results, want) {
		t.Errorf("got %v, want %v", results, want)
	}
	for _, line := range []string{"TestPlayHang is over the limit of 2s", "panic: as wanted"} {
		if !strings.Contains(output, line) {
			t.Errorf("the output lacks %q", line)
		}
	}
}

func TestABinaryThatEndsWithoutRunningItsTestsIsAnError(t *testing.T) {
	_, _, err := runSelf(t, "TestThatDoesNotExist")
	if err == nil || !strings.Contains(err.Error(), "TestThatDoesNotExist") {
		t.Errorf("got %v", err)
	}
}

func TestATestThatEndsTheProcessHasFailed(t *testing.T) {
	results, _, err := runSelf(t, "TestPlayExit", "TestPlayPass")
	if err != nil || results["p/TestPlayExit"] != Fail || results["p/TestPlayPass"] != Pass {
		t.Errorf("%v, %v", results, err)
	}
}

func TestBinariesAreNamedAfterTheirPackagesAndListTheirTests(t *testing.T) {
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(dir, "tests.csapi.test")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "README"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	binaries, err := FindBinaries(dir)
	if err != nil || len(binaries) != 1 || binaries[0].Package != "tests/csapi" {
		t.Fatalf("%v, %v", binaries, err)
	}
	tests, err := binaries[0].Tests(os.Environ())
	if err != nil || !slices.Contains(tests, "TestPlayPass") {
		t.Errorf("%v, %v", tests, err)
	}
}
