package suite

import (
	"slices"
	"strings"
	"testing"
)

func judge(t *testing.T, expectations string, outcomes map[string]Outcome) Verdict {
	t.Helper()
	known, err := ReadExpectations(strings.NewReader(expectations))
	if err != nil {
		t.Fatal(err)
	}
	return Judge(Results(outcomes), known)
}

func expect(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func TestOnlyTheInnermostFailureIsReported(t *testing.T) {
	verdict := judge(t, "", map[string]Outcome{"p/TestA": Fail, "p/TestA/x": Fail, "p/TestA/x/y": Fail, "p/TestA/z": Pass, "p/TestB": Fail})
	expect(t, "failures", verdict.UnexpectedFailures, "p/TestA/x/y", "p/TestB")
}

func TestALineStandsForTheTestAndAllBelowIt(t *testing.T) {
	outcomes := map[string]Outcome{"p/TestA": Fail, "p/TestA/x": Fail, "p/TestA/x/y": Fail}
	for _, line := range []string{"p/TestA", "p/TestA/x", "p/TestA/x/y"} {
		if verdict := judge(t, line+"\twe lack it\n", outcomes); !verdict.Good() {
			t.Errorf("%s: %+v", line, verdict)
		}
	}
	verdict := judge(t, "p/TestA/x/yy\twe lack it\n", outcomes)
	expect(t, "failures", verdict.UnexpectedFailures, "p/TestA/x/y")
}

func TestALineWhoseTestPassesOrIsSkippedMustGo(t *testing.T) {
	verdict := judge(t, "p/TestA\twhy\np/TestB\twhy\n", map[string]Outcome{"p/TestA": Pass, "p/TestB": Skip})
	expect(t, "passes", verdict.UnexpectedPasses, "p/TestA", "p/TestB")
}

func TestALineOfASubtestThatDoesNotExistMustGo(t *testing.T) {
	verdict := judge(t, "p/TestA/gone\twhy\n", map[string]Outcome{"p/TestA": Pass, "p/TestA/there": Pass})
	expect(t, "unknown", verdict.Unknown, "p/TestA/gone")
}

func TestALineOfATestThatWasNotSelectedStays(t *testing.T) {
	if verdict := judge(t, "p/TestB/x\twhy\nq/TestC\twhy\n", map[string]Outcome{"p/TestA": Pass}); !verdict.Good() {
		t.Errorf("%+v", verdict)
	}
}

func TestALineOfASubtestThatItsFailedParentDidNotReachStays(t *testing.T) {
	verdict := judge(t, "p/TestA/x\twhy\n", map[string]Outcome{"p/TestA": Fail})
	expect(t, "failures", verdict.UnexpectedFailures, "p/TestA")
	expect(t, "unknown", verdict.Unknown)
}

func TestAKnownFailureNeedsAReasonAndStandsOnce(t *testing.T) {
	for _, bad := range []string{"p/TestA\n", "p/TestA\t \n", "p/TestA\twhy\np/TestA\twhy\n"} {
		if _, err := ReadExpectations(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestResultsAreSortedByName(t *testing.T) {
	var text strings.Builder
	results := Results{}
	results.Add("p", "TestB", Fail)
	results.Add("p", "TestA/x", Skip)
	results.Add("p", "TestA", Pass)
	if _, err := results.WriteTo(&text); err != nil {
		t.Fatal(err)
	}
	if text.String() != "PASS\tp/TestA\nSKIP\tp/TestA/x\nFAIL\tp/TestB\n" {
		t.Errorf("got %q", text.String())
	}
}
