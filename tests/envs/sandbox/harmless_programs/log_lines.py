import logging
import sys

logging.basicConfig(stream=sys.stdout, level="INFO", format="%(levelname)s %(message)s")
logging.info("said")

# > INFO said
