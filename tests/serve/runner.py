"""Runs the tests here and counts them in the words that .ci/run adds up."""

import sys
import unittest


def main() -> int:
    names = sys.argv[1:]
    loader = unittest.defaultTestLoader
    suite = loader.loadTestsFromNames(names) if names else loader.discover(".")
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    failed = len(result.failures) + len(result.errors)
    skipped = len(result.skipped)
    passed = result.testsRun - failed - skipped
    verdict = "ok" if result.wasSuccessful() else "FAILED"
    print(f"test result: {verdict}. {passed} passed; {failed} failed; {skipped} ignored")
    return 0 if result.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main())
