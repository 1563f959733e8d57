# needs level 3
import http.server
import threading
import urllib.request

s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
s.RequestHandlerClass.log_message = lambda *a: None
open("f.txt", "w").write("served")
threading.Thread(target=s.serve_forever, daemon=True).start()
print(urllib.request.urlopen(f"http://localhost:{s.server_port}/f.txt", timeout=20).read())

# > b'served'
