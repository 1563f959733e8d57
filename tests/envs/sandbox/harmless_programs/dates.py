import time
from datetime import datetime, timedelta, timezone

d = datetime(2024, 2, 28, tzinfo=timezone.utc) + timedelta(days=1)
print(d.isoformat(), d.strftime("%A"))
print(time.localtime(0).tm_year in (1969, 1970))

# > 2024-02-29T00:00:00+00:00 Thursday
# > True
