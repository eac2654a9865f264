"""Runs one of Swift's programs with the swift.conf of a folder instead of /etc/swift/swift.conf.

    python run_swift.py SWIFT_DIR PROGRAM ARGUMENTS...      (with swift importable)

Servers take swift_dir from their configuration; daemons and the hash path settings do not.
"""
import os
import runpy
import shutil
import sys

from swift.common import utils

swift_dir, program = sys.argv[1:3]
utils.set_swift_dir(swift_dir)
here = os.path.join(os.path.dirname(sys.executable), program)
sys.argv = [program] + sys.argv[3:]
runpy.run_path(here if os.path.exists(here) else shutil.which(program), run_name='__main__')
