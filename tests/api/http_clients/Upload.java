// Uploads a file in three ways and creates a batch for each, with java.net.http and its defaults.
// Prints the id of each file, then the number of batches.

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;

public class Upload {
    public static void main(String[] arguments) throws Exception {
        byte[] form = form(Files.readAllBytes(Path.of(arguments[0])));
        String multipart = "multipart/form-data; boundary=xyz";
        // A new client has no connection, so that each first request offers to upgrade.
        String[] uploaded = {
            send(newClient(), "/v1/files", multipart, BodyPublishers.ofByteArray(form), false),
            send(newClient(), "/v1/files", multipart,
                BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(form)), false),
            send(newClient(), "/v1/files", multipart, BodyPublishers.ofByteArray(form), true),
        };
        int batches = 0;
        for (String file : uploaded) {
            String id = file.replaceAll("(?s).*\"id\":\"([^\"]+)\".*", "$1");
            System.out.println(id);
            String create = "{\"input_file_id\": \"" + id + "\", \"endpoint\": \"/v1/chat/completions\", "
                + "\"completion_window\": \"24h\"}";
            HttpClient client = newClient();
            String batch =
                send(client, "/v1/batches", "application/json", BodyPublishers.ofString(create), false);
            String list = send(client, "/v1/batches", null, null, false);
            if (batch.contains(id) && list.contains(id)) {
                batches++;
            }
        }
        System.out.println(batches);
    }

    private static HttpClient newClient() {
        return HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(20)).build();
    }

    private static byte[] form(byte[] content) throws Exception {
        ByteArrayOutputStream form = new ByteArrayOutputStream();
        String disposition = "--xyz\r\nContent-Disposition: form-data; name=";
        form.write((disposition + "\"purpose\"\r\n\r\nbatch\r\n").getBytes());
        form.write((disposition + "\"file\"; filename=\"in.jsonl\"\r\n\r\n").getBytes());
        form.write(content);
        form.write("\r\n--xyz--\r\n".getBytes());
        return form.toByteArray();
    }

    private static String send(
            HttpClient client, String path, String type, BodyPublisher body, boolean expects) throws Exception {
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(System.getenv("SERVER") + path))
            .timeout(Duration.ofSeconds(30))
            .expectContinue(expects)
            .header("Authorization", "Bearer " + System.getenv("KEY"));
        if (body != null) {
            request.header("Content-Type", type).POST(body);
        }
        var response = client.send(request.build(), BodyHandlers.ofString());
        if (response.statusCode() != 200) {
            throw new IllegalStateException(response.statusCode() + " " + response.body());
        }
        return response.body();
    }
}
