"""Faults at the start of a coordinator that takes over: there is a journal with streams in it, and ranks that wait.

A service is started, two streams begin, it is killed; the next one has the fault. It takes over, or it ends with a sentence and the one
after it does, which nothing disturbs: either way both streams go on at their token to the answer that is due. No fault costs what the
journal holds.
"""
import json

import chaos
import start

pb, rpc = chaos.gantry_pb2, chaos.gantry_pb2_grpc
REQUESTS = [dict(prompt="The whale", temperature=0.9, seed=1, max_tokens=200, ignore_eos=True, logprobs=1),
            dict(prompt="Once upon a time", temperature=0, max_tokens=200, ignore_eos=True)]


class Service(start.Service):
    def again(self):
        """Another coordinator. Ended, if it ends."""
        self.launch()
        try:
            self.wait_for(self.serves, chaos.START_S, "the next one to serve")
        except chaos.Failed as failure:
            if self.process.poll() is None:
                raise
            code, self.process = self.process.returncode, None
            raise start.Ended(code, self.log()) from failure

    def serves(self):
        try:
            endpoint = json.loads((self.run_dir / "endpoint.json").read_text())
            if endpoint["pid"] != self.process.pid:
                return False
            self.target = f"127.0.0.1:{endpoint['port']}"
            self.channel = chaos.grpc.insecure_channel(self.target, [("grpc.use_local_subchannel_pool", 1)])
            self.cluster = chaos.gantry_pb2_grpc.ClusterStub(self.channel)
            return self.cluster.GetStatus(pb.GetStatusRequest(), timeout=10).state == "serving"
        except (OSError, ValueError, KeyError, chaos.grpc.RpcError):
            return False


def begin(service):
    """Both streams, with some tokens each: [tokens]."""
    counts = []
    for i, request in enumerate(REQUESTS):
        stub = rpc.GenerationStub(service.channel)
        n = 0
        for chunk in stub.GenerateStream(pb.GenerateRequest(request_id=f"t{i}", **request), timeout=120):
            n += len(chunk.tokens)
            if n >= 5:
                break  # the stream stays, as that of a client that does not read
        counts.append(n)
    return counts


def resumed(service):
    """The whole answers."""
    answers = []
    for i, _ in enumerate(REQUESTS):
        stub = rpc.GenerationStub(service.channel)
        text, ids = "", []
        for attempt in (0, 1):
            try:
                text, ids = "", []
                for chunk in stub.GenerateStream(pb.GenerateRequest(request_id=f"t{i}", resume=True, resume_from=0), timeout=120):
                    text += chunk.text
                    ids += [t.id for t in chunk.tokens]
                break
            except chaos.grpc.RpcError as error:  # the fault may cost this question, not the stream
                if attempt or error.code() != chaos.grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise chaos.Failed(f"stream t{i} is lost: {error.code()}: {error.details()}") from error
        answers.append((text, ids))
    return answers


class Takeovers(start.Ends):
    def __init__(self, page, model, options, names):
        super().__init__(page, "serve", names)
        self.model, self.options, self.wanted = model, options + ["--journal", "DIR/journal"], None

    def run(self, group):
        service = Service(self.model, self.options)
        how, words = "takes over", ""
        with service:
            begin(service)
            service.process.kill()
            service.process.wait()
            self.page.clear()
            for point in group:
                point.arm(self.page)
            try:
                with start.armed(self.page, self.role):
                    service.again()
                self.pid = service.process.pid
            except start.Ended as ended:
                how, words = "ends", start.judge_end(*ended.args)
                self.pid = self.page.hit_pid()
                service.again()
            got = resumed(service)
            if self.wanted is None:
                self.wanted = got
            if got != self.wanted:
                raise chaos.Failed("another answer after the takeover")
        return how, words

    def record(self):
        self.run([])
        self.keep_held()
        return self.called()
