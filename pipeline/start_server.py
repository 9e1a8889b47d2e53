"""One server to talk to: python pipeline/start_server.py --help"""

from mathmill.stages import start_server

if __name__ == "__main__":
    start_server.main()
